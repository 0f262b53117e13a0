"""Decode and encode: media bytes in, unit vectors out.

Takes: bytes of pictures, raw text, settings. Gives: an `Encoder` by name (`embedding.open_encoder`), decoded pictures and
thumbnails (`embedding.pictures`), normalised text (`embedding.texts`), the fused field (`embedding.fields`).
Owns: torch, OpenVINO, ONNX Runtime, open_clip, timm, transformers and Pillow; nothing else imports them.
Never: imports one of them here (``import embedding`` is cheap), or reaches for the network unasked: only an encoder whose name is
a tag of open_clip's has its weights fetched.
"""
