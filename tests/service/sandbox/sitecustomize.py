"""Makes system calls fail as they do in a sandbox. Python imports this module at its start if this folder is in PYTHONPATH.

A filter of system calls, which children inherit: options of sockets are unknown, and processes cannot be pinned.
"""

import ctypes
import errno
import platform
import socket
import struct

SETSOCKOPT, GETSOCKOPT, SETAFFINITY, GETAFFINITY = (
    (208, 209, 122, 123) if platform.machine() == "aarch64" else (54, 55, 203, 204)
)
SO_PEERCRED, SO_ACCEPTCONN = 17, 30
LOAD, IF_EQUAL, RETURN = 0x20, 0x15, 0x06
NUMBER, LEVEL, OPTION = 0, 24, 32
"""The offsets of the number of a system call, and of its second and third argument, in the data of a filter."""
ALLOW, FAIL = 0x7FFF0000, 0x00050000
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, MODE_FILTER = 38, 22, 2


def _fails(*tests: tuple[int, int], with_error: int) -> list[tuple[int, int, int, int]]:
    """Return a part of a filter: the call fails if all values are equal to the given ones."""
    program = []
    for left, (offset, value) in zip(range(len(tests) - 1, -1, -1), tests, strict=True):
        program += [(LOAD, 0, 0, offset), (IF_EQUAL, 0, 2 * left + 1, value)]
    return [*program, (RETURN, 0, 0, FAIL | with_error)]


def _install() -> None:
    tcp = [(socket.IPPROTO_TCP, option) for option in range(2, 40)]  # all but TCP_NODELAY
    common = [(socket.SOL_SOCKET, option) for option in (socket.SO_KEEPALIVE, socket.SO_LINGER, socket.SO_REUSEPORT)]
    queried = [(socket.SOL_SOCKET, option) for option in (SO_PEERCRED, SO_ACCEPTCONN)]
    program = []
    for call, options in ((SETSOCKOPT, tcp + common), (GETSOCKOPT, tcp + queried)):
        for level, option in options:
            program += _fails((NUMBER, call), (LEVEL, level), (OPTION, option), with_error=errno.ENOPROTOOPT)
    for call in (SETAFFINITY, GETAFFINITY):
        program += _fails((NUMBER, call), with_error=errno.ENOSYS)
    code = b"".join(struct.pack("HBBI", *line) for line in [*program, (RETURN, 0, 0, ALLOW)])
    buffer = ctypes.create_string_buffer(code)
    filtered = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, MODE_FILTER, filtered, 0, 0):
        raise OSError(ctypes.get_errno(), "no filter of system calls here")


_install()
