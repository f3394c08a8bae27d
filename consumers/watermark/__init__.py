"""Watermark: marks in answers to suspected clients, by which a copy of the model is recognised, and answers with less detail.

A model server mounts `middleware.DegradationMiddleware`; the gateway tells it in headers which client gets which answers. `verification`
asks a suspected copy the inputs that the registry holds, and computes how improbable its answers are for a model that never saw the marks
(after Szyller, Atli, Marchal, Asokan: DAWN, Dynamic Adversarial Watermarking of Neural Networks, ACM Multimedia 2021).

Rules:

* It runs inside model servers: standard library, `cryptography` and `msgspec` only; no store, no settings, no numpy.
* Every choice is made by a keyed hash of the quantised input: the same input gets the same answer, whichever client asks.
* No client is marked without a registered record, and no record holds an input in clear.
* Selection depends on the key and the input alone. So for a model that never saw the marks, marked and control inputs are exchangeable,
  and the test of `verification` is exact.
"""
