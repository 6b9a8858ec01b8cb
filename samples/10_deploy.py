"""Run an image classifier where it is deployed: nothing but numpy and onnxruntime.

    python samples/10_deploy.py int8.onnx images.npz

`images.npz` has the images, as the model takes them, under its input's name. Prints the class of each.
"""

import sys

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
with np.load(sys.argv[2]) as stored:
    images = stored[name]
logits = np.concatenate([session.run(None, {name: images[k : k + 100]})[0] for k in range(0, len(images), 100)])
print(" ".join(str(k) for k in logits.argmax(1)))
