"""CPU operators. Addresses are integers; see csrc/cpu/ops.h for the meaning of every argument."""

def best_isa() -> int: ...
def isa_runs(isa: int) -> bool: ...
def set_openmp(gomp_parallel: int, get_thread_num: int, get_num_threads: int) -> None: ...
def column_sumsq(
    x: int, dtype: int, rows: int, cols: int, ld: int, weight: int, out: int, threads: int, isa: int
) -> None: ...
def wanda_mask(
    weight: int,
    dtype: int,
    rows: int,
    cols: int,
    norm: int,
    group: int,
    prune: int,
    keep: int,
    threads: int,
    isa: int,
) -> int: ...
def wanda_pack24(
    weight: int, dtype: int, rows: int, cols: int, norm: int, values: int, meta: int, threads: int, isa: int
) -> int: ...
def pack24(
    weight: int, dtype: int, rows: int, cols: int, values: int, meta: int, threads: int, isa: int
) -> int: ...
def unpack24(
    values: int, meta: int, dtype: int, rows: int, cols: int, weight: int, threads: int, isa: int
) -> None: ...
def linear24_few_below(dtype: int, isa: int) -> int: ...
def linear24_prepared_bytes(dtype: int, out: int, in_: int, few: bool, isa: int) -> int: ...
def linear24_prepare(
    values: int, meta: int, dtype: int, out: int, in_: int, few: bool, prepared: int, isa: int
) -> None: ...
def linear24(
    x: int,
    ldx: int,
    prepared: int,
    few: bool,
    bias: int,
    residual: int,
    dtype: int,
    tokens: int,
    out: int,
    in_: int,
    activation: int,
    y: int,
    threads: int,
    isa: int,
) -> None: ...
def head_attention(
    qkv: int,
    dtype: int,
    batch_stride: int,
    token_stride: int,
    batch: int,
    length: int,
    heads: int,
    dim: int,
    causal: bool,
    scale: float,
    out: int,
    threads: int,
    isa: int,
) -> None: ...
def masked_update(
    weight: int,
    dtype: int,
    rows: int,
    cols: int,
    a: int,
    b: int,
    rank: int,
    keep: int,
    out: int,
    threads: int,
    isa: int,
) -> None: ...
def masked_update_backward(
    grad: int,
    dtype: int,
    rows: int,
    cols: int,
    a: int,
    b: int,
    rank: int,
    keep: int,
    for_a: int,
    for_b: int,
    threads: int,
    isa: int,
) -> None: ...

why_no_cuda: str  # why vlprune/_C_cuda was not built beside this module; empty where it was

def sm90_meta_bytes(out: int, in_: int) -> int: ...
def sm90_reorder_meta(meta: int, out: int, in_: int, to: int) -> None: ...
def sm90_scaled_meta_bytes(out: int, in_: int) -> int: ...
def sm90_scaled_reorder_meta(meta: int, out: int, in_: int, to: int) -> None: ...
def sm80_meta_bytes(out: int, in_: int) -> int: ...
def sm80_reorder_meta(meta: int, out: int, in_: int, to: int) -> None: ...
