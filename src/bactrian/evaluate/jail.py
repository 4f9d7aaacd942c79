"""Locks itself in and then runs Python code that nobody has read. Run by `sandbox`, as a program of its own.

    python -I jail.py '{"memory": BYTES, "cpu": SECONDS, "threads": N, "disk": BYTES, "paths": [...],
                            "caller": PID}' CODE

What it runs has user, process, network, mount, IPC and host name spaces of its own, belongs to a user that is not root,
holds no capability and can get none, sees nothing but the interpreter (read only) and an empty folder in memory, and
has limits on memory, processor time, threads and the size of files. It starts no process and has no memory but its own,
so that the limit on that is a limit on all. It has no sockets but those of Unix, nothing of the kernel that computing
does not need, and ends when its caller does. It exits with 125 where the system does not offer this. Standard library
alone, so that it starts fast.
"""

import ctypes
import errno
import json
import os
import resource
import select
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

# By machine: its number for the kernel, and the last of its own system calls; later ones have the same numbers on all.
_MACHINES = {"x86_64": (0xC000003E, 334), "aarch64": (0xC00000B7, 294)}
_CLONE, _SOCKET, _SOCKETPAIR = (56, 220), (41, 198), (53, 199)
# What is closed, by its numbers on x86_64 and aarch64 (-1: not there). A solution to a task needs none of it, and each
# is a way to another process, to memory that limits do not count, or into parts of the kernel that few look after.
_CLOSED = {
    **{"fork": (57, -1), "vfork": (58, -1), "ptrace": (101, 117), "kcmp": (312, 272)},
    **{"process_vm_readv": (310, 270), "process_vm_writev": (311, 271)},
    **{"shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "memfd_create": (319, 279)},
    **{"msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "remap_file_pages": (216, 234)},
    **{"add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219)},
    **{"bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "seccomp": (317, 277)},
    **{"io_setup": (206, 0), "io_destroy": (207, 1), "io_submit": (209, 2), "io_cancel": (210, 3)},
    **{"io_getevents": (208, 4), "io_pgetevents": (333, 292)},
    **{"unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51), "pivot_root": (155, 41)},
    **{"mount": (165, 40), "umount2": (166, 39), "swapon": (167, 224), "swapoff": (168, 225)},
    **{"name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "lookup_dcookie": (212, 18)},
    **{"fanotify_init": (300, 262), "fanotify_mark": (301, 263), "quotactl": (179, 60), "acct": (163, 89)},
    **{"mbind": (237, 235), "set_mempolicy": (238, 237), "get_mempolicy": (239, 236)},
    **{"migrate_pages": (256, 238), "move_pages": (279, 239)},
    **{"init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106)},
    **{"kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142), "syslog": (103, 116)},
    **{"settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266)},
    **{"sethostname": (170, 161), "setdomainname": (171, 162), "vhangup": (153, 58), "nfsservctl": (180, 42)},
    **{"personality": (135, 92), "iopl": (172, -1), "ioperm": (173, -1), "modify_ldt": (154, -1)},
    **{"uselib": (134, -1), "ustat": (136, -1), "sysfs": (139, -1), "_sysctl": (156, -1)},
}
# Of the later ones those that libraries use: close_range, openat2, faccessat2, epoll_pwait2, futex_waitv, fchmodat2,
# futex_wake, futex_wait, futex_requeue. The rest (io_uring, pidfd, mounts, what is to come) is as on an older kernel.
_LATER = (436, 437, 439, 441, 449, 452, 454, 455, 456)
_UNIX = 1  # the one family of sockets: within its own empty folder and network
_CLONE_THREAD, _OTHER_ABI = 0x00010000, 0x40000000
_SECCOMP, _FILTER = 22, 2
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # operations of a filter
_NUMBER, _MACHINE, _ARGUMENT = 0, 4, 16  # what it loads: the call's number, the machine, the first argument
_ALLOW, _FAIL, _KILL = 0x7FFF0000, 0x00050000, 0x80000000

_libc = ctypes.CDLL(None, use_errno=True)


class _Operation(ctypes.Structure):
    """One operation of a filter; its jumps are so many operations forward."""

    _fields_ = (
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("value", ctypes.c_uint32),
    )


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("operations", ctypes.POINTER(_Operation)))


def main() -> None:
    limits, code = json.loads(sys.argv[1]), sys.argv[2]
    try:
        is_root = os.geteuid() == 0
        if not is_root:
            _become_root_of_own()
        # After any change of user, which takes it back.
        _call("prctl", _PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != limits["caller"]:  # it was killed before
            os._exit(_UNAVAILABLE)
        _call("unshare", _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS)
        _build_root(list(dict.fromkeys([*_SYSTEM, *limits["paths"]])), limits["disk"])
        living, alive = os.pipe()
        first = os.fork()
        if first == 0:
            os.close(alive)
            _guard(is_root, limits, code, living)
    except OSError as error:
        print(f"{error.filename or 'isolation'}: {error.strerror}", file=sys.stderr)
        os._exit(_UNAVAILABLE)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 0xFF)


def _guard(is_root: bool, limits: dict, code: str, living: int) -> None:
    """The first process of the space, with whose end everything in it ends: starts the code and waits for it.

    `living` is a pipe that its parent holds open as long as it lives.
    """
    try:
        if is_root:
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
            _call("unshare", _NEWUSER)
        # After any change of user, which takes it back.
        _call("prctl", _PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if select.select([living], [], [], 0)[0]:  # its parent was killed before
            os._exit(_UNAVAILABLE)
        os.close(living)
        for capability in range(_CAPABILITIES):
            _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0)  # refuses numbers beyond the last one there is
        _call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)
        for name, value in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, limits["disk"]),
            (resource.RLIMIT_NOFILE, 64),
            (resource.RLIMIT_CPU, limits["cpu"]),
            (resource.RLIMIT_AS, limits["memory"]),
            (resource.RLIMIT_NPROC, limits["threads"]),
        ):
            resource.setrlimit(name, (value, value))
        child = os.fork()
        if child == 0:
            _close_the_kernel()
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


def _close_the_kernel() -> None:
    """From here on a thread can be made, and neither a process nor memory that limits do not count; of the kernel there
    is what a program needs that computes."""
    machine = os.uname().machine
    if machine not in _MACHINES:
        raise OSError(errno.ENOSYS, f"no filter of system calls is known for {machine}", "seccomp")
    number, last = _MACHINES[machine]
    column = list(_MACHINES).index(machine)
    fail, missing, allow = ((_RETURN, 0, 0, what) for what in (_FAIL | errno.EPERM, _FAIL | errno.ENOSYS, _ALLOW))
    no_family = (_RETURN, 0, 0, _FAIL | errno.EAFNOSUPPORT)
    operations = [(_LOAD, 0, 0, _MACHINE), (_EQUAL, 1, 0, number), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    operations += [(_AT_LEAST, 0, 1, _OTHER_ABI), fail]
    for numbers in _CLOSED.values():
        if numbers[column] >= 0:
            operations += [(_EQUAL, 0, 1, numbers[column]), fail]
    for later in _LATER:
        operations += [(_EQUAL, 0, 1, later), allow]
    # clone3's flags lie in memory, where no filter looks; the library then takes `clone`.
    operations += [(_AT_LEAST, 0, 1, last + 1), missing]
    for call in (_SOCKET[column], _SOCKETPAIR[column]):
        operations += [(_EQUAL, 0, 4, call), (_LOAD, 0, 0, _ARGUMENT), (_EQUAL, 0, 1, _UNIX), allow, no_family]
    operations += [(_EQUAL, 0, 3, _CLONE[column]), (_LOAD, 0, 0, _ARGUMENT), (_ANY_BIT, 1, 0, _CLONE_THREAD), fail]
    operations += [allow]
    array = (_Operation * len(operations))(*operations)
    _call("prctl", _SECCOMP, _FILTER, ctypes.byref(_Filter(len(operations), array)), 0, 0)


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
