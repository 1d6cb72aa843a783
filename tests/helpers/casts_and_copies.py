"""Every way to cast a module that holds a metric, and to copy a metric."""

import copy
import io
import pickle

import torch

CASTS = {
    "to(bfloat16)": lambda parent: parent.to(torch.bfloat16),
    "to(float16)": lambda parent: parent.to("cpu", torch.float16),
    "bfloat16": lambda parent: parent.bfloat16(),
    "half": lambda parent: parent.half(),
    "float": lambda parent: parent.float(),
    "double": lambda parent: parent.double(),
    "metric.to(bfloat16)": lambda parent: parent["metric"].to(torch.bfloat16),
    "metric.half": lambda parent: parent["metric"].half(),
    "set_dtype(bfloat16)": lambda parent: parent["metric"].set_dtype(torch.bfloat16),
    "set_dtype(float16)": lambda parent: parent["metric"].set_dtype(torch.float16),
    "set_dtype(float64)": lambda parent: parent["metric"].set_dtype(torch.float64),
    "to(cpu)": lambda parent: parent.to("cpu"),
    "train, eval, requires_grad_": lambda parent: parent.train().eval().requires_grad_(False),
}


def saved_and_loaded(metric):
    file = io.BytesIO()
    torch.save(metric, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "pickle": lambda metric: pickle.loads(pickle.dumps(metric)),
    "deepcopy": copy.deepcopy,
    "clone": lambda metric: metric.clone(),
}
