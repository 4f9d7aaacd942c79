"""Locks itself in and then runs Python code that nobody has read. Run by `sandbox`, as a program of its own.

    python -I jail.py '{"memory": BYTES, "cpu": SECONDS, "processes": N, "disk": BYTES, "paths": [...]}' CODE

What it runs has user, process, network, mount, IPC and host name spaces of its own, belongs to a user that is not root,
holds no capability and can get none, sees nothing but the interpreter (read only) and an empty folder in memory, and
has limits on memory, processor time, processes and the size of files. It exits with 125 where the system does not
offer that. Standard library alone, so that it starts fast.
"""

import ctypes
import json
import os
import resource
import signal
import sys

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_NOSUID, _NODEV, _BIND, _REC, _PRIVATE, _DETACH = 2, 4, 4096, 16384, 1 << 18, 2
_SYS_MOUNT_SETATTR, _AT_RECURSIVE, _ATTR_RDONLY, _ATTR_NOSUID = 442, 0x8000, 1, 2  # the same on every architecture
_PDEATHSIG, _CAPBSET_DROP, _NO_NEW_PRIVS = 1, 24, 38
_CAPABILITIES = 64
_NOBODY = 65534
_UNAVAILABLE = 125
_BOX = "/box"
_OVER = ("/mnt", "/tmp", "/var", "/run")  # folders that every system has; the new root is put on one of them
_SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/zero", "/dev/urandom")

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    limits, code = json.loads(sys.argv[1]), sys.argv[2]
    try:
        is_root = os.geteuid() == 0
        _call("prctl", _PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if not is_root:
            _become_root_of_own()
        _call("unshare", _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS)
        _build_root(list(dict.fromkeys([*_SYSTEM, *limits["paths"]])), limits["disk"])
        first = os.fork()
        if first == 0:
            _guard(is_root, limits, code)
    except OSError as error:
        print(f"{error.filename or 'isolation'}: {error.strerror}", file=sys.stderr)
        os._exit(_UNAVAILABLE)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 0xFF)


def _guard(is_root: bool, limits: dict, code: str) -> None:
    """The first process of the space, with whose end everything in it ends: starts the code and waits for it."""
    try:
        _call("prctl", _PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if is_root:
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
            _call("unshare", _NEWUSER)
        for capability in range(_CAPABILITIES):
            _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0)  # refuses numbers beyond the last one there is
        _call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)
        for name, value in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, limits["disk"]),
            (resource.RLIMIT_NOFILE, 64),
            (resource.RLIMIT_CPU, limits["cpu"]),
            (resource.RLIMIT_AS, limits["memory"]),
            (resource.RLIMIT_NPROC, limits["processes"]),
        ):
            resource.setrlimit(name, (value, value))
        child = os.fork()
        if child == 0:
            os.dup2(os.open("/dev/null", os.O_WRONLY), 2)
            environment = {"HOME": _BOX, "TMPDIR": _BOX, "PATH": "/usr/bin:/bin", "OPENBLAS_NUM_THREADS": "1"}
            os.execve(sys.executable, [sys.executable, "-I", "-B", "-c", code], environment)
    except OSError as error:
        print(f"{error.filename or 'isolation'}: {error.strerror}", file=sys.stderr)
        os._exit(_UNAVAILABLE)
    while True:  # reaps whatever is left to it
        ended, status = os.wait()
        if ended == child:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _become_root_of_own() -> None:
    """A user space in which this user is called root: what it takes to mount, and nothing outside of it."""
    user, group = os.geteuid(), os.getegid()
    _call("unshare", _NEWUSER)
    for name, content in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(content)


def _build_root(paths: list[str], size: int) -> None:
    """A root folder in memory with nothing in it but `paths`, read only, and the box."""
    root = next(
        over for over in _OVER if os.path.isdir(over) and not any(f"{p}/".startswith(f"{over}/") for p in paths)
    )
    _call("mount", None, b"/", None, _REC | _PRIVATE, None)
    _mount_memory(root, size, "0755")
    for path in paths:
        if not os.path.lexists(path) or any(path.startswith(f"{other}/") for other in paths):
            continue
        inside = f"{root}{path}"
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), inside)
            continue
        if os.path.isdir(path):
            os.makedirs(inside)
        else:
            open(inside, "w").close()
        _call("mount", path.encode(), inside.encode(), None, _BIND | _REC, None)
    os.mkdir(f"{root}{_BOX}")
    _make_read_only(root)
    _mount_memory(f"{root}{_BOX}", size, "1777")
    os.chdir(root)
    _call("pivot_root", b".", b".")
    _call("umount2", b".", _DETACH)
    os.chdir(_BOX)


def _mount_memory(path: str, size: int, mode: str) -> None:
    options = f"size={size},nr_inodes=4096,mode={mode}".encode()
    _call("mount", b"tmpfs", path.encode(), b"tmpfs", _NOSUID | _NODEV, options)


def _make_read_only(path: str) -> None:
    attributes = (ctypes.c_uint64 * 4)(_ATTR_RDONLY | _ATTR_NOSUID, 0, 0, 0)
    _call("syscall", _SYS_MOUNT_SETATTR, -100, path.encode(), _AT_RECURSIVE, attributes, ctypes.sizeof(attributes))


def _call(name: str, *arguments: object) -> None:
    """A call of the system's library. Raises OSError."""
    wide = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    if getattr(_libc, name)(*wide) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), name)


if __name__ == "__main__":
    main()
