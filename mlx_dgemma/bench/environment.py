"""What a figure depends on beside the checkpoint: chip, system, power, versions, MLX's switches."""

import os
import platform
import re
import subprocess

import mlx.core as mx

from mlx_dgemma import __version__
from mlx_dgemma.model import host, memory, trust

NAX = (17, (26, 2))  # the first GPU generation (M5) and macOS with MLX's neural accelerator kernels


def environment() -> dict[str, str]:
    """By name, in the order of a table; what cannot be found out is left out."""
    info = mx.device_info()
    system, release = platform.system(), platform.mac_ver()[0]
    found = {
        "chip": str(info.get("device_name") or platform.processor() or platform.machine()),
        "system": f"macOS {release}" if release else f"{system} {platform.release()}",
        "power": _power_mode(),
        "accelerators": _accelerators(str(info.get("architecture", "")), release),
        "wired limit": _wired_limit(),
        "versions": f"mlx-dgemma {__version__}, mlx {host.MLX_VERSION}, Python {platform.python_version()}",
        "MLX switches": ", ".join(f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith("MLX_")),
        "distrusted": ", ".join(trust.distrusted()),
    }
    return {name: value for name, value in found.items() if value}


def _power_mode() -> str:
    """Of a Mac: low power mode halves the speed of a GPU."""
    try:
        told = subprocess.run(["pmset", "-g"], capture_output=True, text=True, check=False, timeout=5).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    modes = dict(re.findall(r"^\s*(lowpowermode|highpowermode|powermode)\s+(\d)", told, re.M))
    if modes.get("lowpowermode") == "1" or modes.get("powermode") == "1":
        return "low"
    return "high" if modes.get("highpowermode") == "1" or modes.get("powermode") == "2" else "automatic"


def _accelerators(architecture: str, macos: str) -> str:
    """Whether MLX multiplies on the GPU's neural accelerators."""
    generation = re.search(r"applegpu_g(\d+)", architecture)
    if generation is None or not macos:
        return ""
    version = tuple(int(part) for part in macos.split(".")[:2])
    return "used" if int(generation[1]) >= NAX[0] and version >= NAX[1] else "none"


def _wired_limit() -> str:
    most = memory.recommended()
    return "" if most is None else f"{most / 1e9:.1f} GB may be wired"
