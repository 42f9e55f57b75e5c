"""Records of benchmarks that were made up, for what is drawn and printed of them."""


def timing(median):
    return {"median": median, "p20": 0.98 * median, "p80": 1.03 * median, "samples": 9}


def paired(median, spread=0.02):
    low, high = median * (1 - spread), median * (1 + spread)
    return {
        "median": median, "p20": low, "p80": high, "samples": 9, "low": low, "high": high, "deviation": spread
    }  # fmt: skip


def linear24_row(tokens, inputs, outputs, dense, sparse, dtype="fp32", spread=0.02):
    ratio = dense / sparse
    around = 4 * tokens * (inputs + outputs)
    label = f"{tokens} x {inputs} -> {outputs}"
    return {
        "name": f"linear24 {dtype} {label}",
        "op": "linear24",
        "label": label,
        "dtype": dtype,
        "sizes": {"tokens": tokens, "in": inputs, "out": outputs, "activation": None},
        "operations": 2.0 * tokens * inputs * outputs,
        "moved": {"vlprune": around + 2 * inputs * outputs, "F.linear": around + 4 * inputs * outputs},
        "times": {"vlprune": timing(sparse), "F.linear": timing(dense)},
        "ratios": {"F.linear": paired(ratio, spread)},
        "peer": "F.linear",
        "speedup": ratio,
    }


def tower_row():
    layer = {"tokens": 50, "in_features": 768, "out_features": 3072, "packed": True}
    names = ("attn.qkv", "mlp.c_fc")
    layers = [
        {**layer, "name": f"visual.transformer.resblocks.{i}.{name}", "dense": 3e-3, "sparse": 2e-3}
        for i in range(2)
        for name in names
    ]
    return {
        "name": "tower fp32 ViT-B-32 image, 1 image",
        "op": "tower",
        "label": "ViT-B-32 image, 1 image",
        "dtype": "fp32",
        "sizes": {"model": "ViT-B-32", "tower": "image", "batch": 1},
        "operations": 8.8e9,
        "moved": {},
        "times": {"vlprune": timing(0.05), "dense": timing(0.08)},
        "ratios": {"dense": paired(1.6)},
        "peer": "dense",
        "speedup": 1.6,
        "sparsify": {"layers": layers},
    }


def bench_record():
    """fp32 with one token slower, 16 even and 400 faster; a tower; a case that failed."""
    rows = [
        linear24_row(tokens, width, 4 * width, dense, 1e-3, spread=0.05)
        for width in (512, 768)
        for tokens, dense in ((1, 0.6e-3), (16, 1.01e-3), (400, 1.8e-3))
    ]
    rows += [linear24_row(400, 3072, 768, 1.7e-3, 1e-3), tower_row()]
    rows.append(
        {
            "name": "wanda_mask fp32 2:4 8 x 8",
            "op": "wanda_mask",
            "label": "2:4 8 x 8",
            "dtype": "fp32",
            "sizes": {},
            "error": "wanda_mask 2:4: differs from <plain> PyTorch",
        }
    )
    return {
        "format": "vlprune-bench",
        "version": 2,
        "set": "quick",
        "device": "cpu",
        "seconds": 120.0,
        "machine": {
            "cpu": "Some CPU with a long name and its clock @ 3.00 GHz",
            "isa": "avx2",
            "threads": 2,
            "gpu": None,
            "torch": "2.15.0+cu132",
            "vlprune": "0.1.0",
            "commit": "v0.1.0-12-gabcdef0+changes",
        },
        "ceilings": {
            "bandwidth": {"memory": 2e10, "cache": 6e10},
            "rate": {"fp32": 1.2e11},
            "rows": [],
        },
        "rows": rows,
    }
