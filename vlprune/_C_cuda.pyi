"""CUDA operators. Addresses and streams are integers; csrc/cuda/linear24.h says what every argument means."""

def error_name(code: int) -> str: ...
def sm90_configs() -> list[dict[str, str | int]]: ...
def sm90_workspace(config: int, tokens: int, out: int, in_: int, dtype: int) -> int: ...
def sm90_why_not(
    config: int, tokens: int, out: int, in_: int, dtype: int, activation: int, residual: bool
) -> str | None: ...
def sm90_run(
    config: int,
    x: int,
    ldx: int,
    values: int,
    meta: int,
    bias: int,
    residual: int,
    ldr: int,
    y: int,
    ldy: int,
    tokens: int,
    out: int,
    in_: int,
    dtype: int,
    activation: int,
    workspace: int,
    workspace_bytes: int,
    workspace_is_fresh: bool,
    sms: int,
    stream: int,
) -> int: ...
def sm90_scaled_configs() -> list[dict[str, str | int]]: ...
def sm90_scaled_workspace(config: int, tokens: int, out: int, in_: int, dtype: int) -> int: ...
def sm90_scaled_why_not(
    config: int, tokens: int, out: int, in_: int, dtype: int, activation: int, residual: bool
) -> str | None: ...
def sm90_scaled_run(
    config: int,
    x: int,
    ldx: int,
    values: int,
    meta: int,
    bias: int,
    residual: int,
    ldr: int,
    y: int,
    ldy: int,
    tokens: int,
    out: int,
    in_: int,
    dtype: int,
    activation: int,
    workspace: int,
    workspace_bytes: int,
    workspace_is_fresh: bool,
    sms: int,
    stream: int,
    x_scale: int = 0,
    w_scale: int = 0,
    y_dtype: int = 0,
) -> int: ...
def sm80_configs() -> list[dict[str, str | int]]: ...
def sm80_workspace(config: int, tokens: int, out: int, in_: int, dtype: int) -> int: ...
def sm80_why_not(
    config: int, tokens: int, out: int, in_: int, dtype: int, activation: int, residual: bool
) -> str | None: ...
def sm80_run(
    config: int,
    x: int,
    ldx: int,
    values: int,
    meta: int,
    bias: int,
    residual: int,
    ldr: int,
    y: int,
    ldy: int,
    tokens: int,
    out: int,
    in_: int,
    dtype: int,
    activation: int,
    workspace: int,
    workspace_bytes: int,
    workspace_is_fresh: bool,
    sms: int,
    stream: int,
) -> int: ...
