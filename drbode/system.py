"""What differs between Linux, macOS and Windows, in one place. Imports nothing else of drbode."""

import ctypes
import os
import platform
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

GIB = 1 << 30
QUERY = 0x1000  # PROCESS_QUERY_LIMITED_INFORMATION, of the Windows API


def lock(file: Any) -> None:
    """Locks an open file until it is closed, or its process ends; waits while another holds it."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX)
        return
    import msvcrt

    windows: Any = msvcrt
    while True:
        try:
            windows.locking(file.fileno(), windows.LK_LOCK, 1)
            return
        except OSError:  # it gives up after ten seconds
            continue


def read_at(descriptor: int, size: int, start: int) -> bytes:
    """`size` bytes of an open file from `start` on."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, start)
    os.lseek(descriptor, start, os.SEEK_SET)  # Windows
    return os.read(descriptor, size)


def is_alive(pid: int) -> bool:
    """Whether another process than this one has that number."""
    if pid == os.getpid():
        return False
    if os.name == "nt":  # where signal 0 would end the process
        kernel: Any = ctypes.windll.kernel32  # type: ignore[attr-defined]
        handle = kernel.OpenProcess(QUERY, False, pid)
        if handle:
            kernel.CloseHandle(handle)
        return bool(handle)
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def c_library() -> Any | None:
    """glibc, through which its memory is tuned; None where the C library is another one."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def reset_peak_rss() -> None:
    """Forgets the process's peak so far, where the kernel lets one."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # the peak is then that of the process's life, an upper bound


def peak_rss_gib() -> float:
    """The most resident memory of this process since the last reset; 0 where nothing tells."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / GIB
    if resource is None:
        return 0.0
    unit = 1 if platform.system() == "Darwin" else 1024  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
