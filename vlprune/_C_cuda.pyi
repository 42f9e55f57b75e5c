"""CUDA operators. Addresses and streams are integers; csrc/cuda/linear24.h says what every argument means."""

class Launcher:
    """A call that lacks only what differs from one to the next."""

    def launch(
        self,
        x: int,
        residual: int,
        y: int,
        stream: int,
        ldx: int,
        ldr: int,
        ldy: int,
        workspace: int = 0,
        workspace_bytes: int = 0,
        workspace_is_fresh: bool = False,
    ) -> int:
        """Give the number of a cudaError_t."""

def error_name(code: int) -> str: ...
def sm90_configs() -> list[dict[str, str | int]]: ...
def sm90_workspace(config: int, tokens: int, out: int, in_: int, dtype: int) -> int: ...
def sm90_why_not(
    config: int, tokens: int, out: int, in_: int, dtype: int, activation: int, residual: bool
) -> str | None: ...
def sm90_launcher(
    config: int,
    values: int,
    meta: int,
    bias: int,
    tokens: int,
    out: int,
    in_: int,
    dtype: int,
    activation: int,
    sms: int,
) -> Launcher: ...
def sm90_scaled_configs() -> list[dict[str, str | int]]: ...
def sm90_scaled_workspace(config: int, tokens: int, out: int, in_: int, dtype: int) -> int: ...
def sm90_scaled_why_not(
    config: int, tokens: int, out: int, in_: int, dtype: int, activation: int, residual: bool
) -> str | None: ...
def sm90_scaled_launcher(
    config: int,
    values: int,
    meta: int,
    bias: int,
    tokens: int,
    out: int,
    in_: int,
    dtype: int,
    activation: int,
    sms: int,
    x_scale: int = 0,
    w_scale: int = 0,
    y_dtype: int = 0,
) -> Launcher: ...
def sm80_configs() -> list[dict[str, str | int]]: ...
def sm80_workspace(config: int, tokens: int, out: int, in_: int, dtype: int) -> int: ...
def sm80_why_not(
    config: int, tokens: int, out: int, in_: int, dtype: int, activation: int, residual: bool
) -> str | None: ...
def sm80_launcher(
    config: int,
    values: int,
    meta: int,
    bias: int,
    tokens: int,
    out: int,
    in_: int,
    dtype: int,
    activation: int,
    sms: int,
) -> Launcher: ...
