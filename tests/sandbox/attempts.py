"""Programs that try to get out. `C` names what they aim at; `WORKED` in their output is success.

SAFE ones also run without a sandbox, where they must succeed: else they would prove nothing.
"""

SAFE = {
    # files of the host
    "read a file": "print(open(C['file']).read())",
    "read through ..": "print(open('/tmp/../' * 3 + C['file']).read())",
    "read through a symlink": "os.symlink(C['file'], 'link'); print(open('link').read())",
    "read through a hard link": "os.link(C['file'], 'hard'); print(open('hard').read())",
    "read with libc": """
        descriptor = libc.open(C['file'].encode(), 0)
        data = ctypes.create_string_buffer(100); libc.read(descriptor, data, 100); print(data.value)
    """,
    "read with a shell": "subprocess.run(['/bin/sh', '-c', 'cat ' + C['file']])",
    "read with another python": """
        subprocess.run([sys.executable, '-c', f"print(open({C['file']!r}).read())"])
    """,
    "replace the process": "os.execv('/bin/cat', ['cat', C['file']])",
    "list a folder": "os.listdir(C['home']); print('WORKED')",
    "read passwords": "open('/etc/passwd').read(); print('WORKED')",
    "overwrite": "open(C['file'], 'w').write('gone')",
    "append through a symlink": "os.symlink(C['file'], 'x'); open('x', 'a').write('more')",
    "create": "open(C['home'] + '/new', 'w').write('x')",
    "delete": "os.remove(C['file'])",
    "rename": "os.rename(C['file'], C['file'] + '.old')",
    "change its mode": "os.chmod(C['file'], 0o777)",
    "make a folder": "os.mkdir(C['home'] + '/folder')",
    "write to the host's /tmp": "open(C['tmp'], 'w').write('x')",
    "write to shared memory": "open(C['shm'], 'w').write('x')",
    "read inherited files": """
        for descriptor in range(3, 300):
            try: print(os.pread(descriptor, 100, 0))
            except OSError: pass
    """,
    # other processes
    "read an environment": "print(open(f'/proc/{C[\"pid\"]}/environ').read())",
    "read every environment": """
        for name in os.listdir('/proc'):
            if name.isdigit():
                try: print(open(f'/proc/{name}/environ').read())
                except OSError: pass
    """,
    "reach a file through /proc": "print(open(f'/proc/{C[\"pid\"]}/root' + C['file']).read())",
    "list the processes": "os.listdir('/proc'); print('WORKED')",
    "open the memory of a process": "open(f'/proc/{C[\"pid\"]}/mem', 'rb+'); print('WORKED')",
    "kill a process": "os.kill(C['pid'], 9)",
    "stop a process by its descriptor": """
        signal.pidfd_send_signal(os.pidfd_open(C['pid']), 9)
    """,
    "ptrace": """
        if libc.ptrace(16, C['pid'], None, None) == 0: print('WORKED')
    """,
    "read memory of a process": """
        class Part(ctypes.Structure): _fields_ = [('at', ctypes.c_void_p), ('n', ctypes.c_size_t)]
        a, b = ctypes.create_string_buffer(8), ctypes.create_string_buffer(8)
        to, of = Part(ctypes.addressof(a), 8), Part(ctypes.addressof(b), 8)
        if libc.process_vm_readv(os.getpid(), ctypes.byref(to), 1, ctypes.byref(of), 1, 0) == 8:
            print('WORKED')
    """,
    "lower the limits of a process": """
        import resource; resource.prlimit(C['pid'], resource.RLIMIT_NOFILE); print('WORKED')
    """,
    "outlive as a daemon": """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for descriptor in range(3): os.close(descriptor)
                import time; time.sleep(0.2)
                open(C['home'] + '/late', 'w').write('x')
            os._exit(0)
        os.wait()
    """,
    "read secrets of the environment": "print(dict(os.environ))",
    "raise a limit": """
        import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)); print('WORKED')
    """,
    # network
    "tcp": "socket.create_connection(('127.0.0.1', C['tcp']), 1)",
    "udp": "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', C['udp']))",
    "ipv6": "socket.socket(socket.AF_INET6); print('WORKED')",
    "unix socket": "socket.socket(socket.AF_UNIX).connect(C['home'] + '/socket')",
    "abstract socket": "socket.socket(socket.AF_UNIX).connect('\\0' + C['abstract'])",
    "listen": "socket.create_server(('0.0.0.0', 0)); print('WORKED')",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); print('WORKED')",
    # namespaces and memory
    "new user namespace": "if libc.unshare(0x10000000) == 0: print('WORKED')",
    "clone into a user namespace": """
        number = 56 if os.uname().machine == 'x86_64' else 220
        pid = libc.syscall(number, 0x10000000 | 17, 0, 0, 0, 0)
        if pid == 0: os._exit(0)
        if pid > 0: print('WORKED')
    """,
    "shared memory of the host": "if libc.shmget(C['key'], 4096, 0) >= 0: print('WORKED')",
    "new shared memory": """
        number = libc.shmget(0, 4096, 0o1600)
        if number >= 0: libc.shmctl(number, 0, None); print('WORKED')
    """,
    "memory file": "os.memfd_create('x'); print('WORKED')",
}

# These succeed without a sandbox for root alone.
ROOT = {
    "read shadow": "open('/etc/shadow').read(); print('WORKED')",
    "chroot": "os.mkdir('jail'); os.chroot('jail'); print('WORKED')",
    "join the host's mounts": """
        if libc.setns(os.open(f'/proc/{C["pid"]}/ns/mnt', 0), 0) == 0: print('WORKED')
    """,
    "mount": """
        os.mkdir('m'); libc.unshare(0x20000); libc.mount(b'', b'/', b'', 1 << 18 | 1 << 14, None)
        if libc.mount(b'none', b'm', b'tmpfs', 0, None) == 0: print('WORKED')
    """,
    "make a device": "os.mknod('disk', 0o060600, os.makedev(7, 0)); print('WORKED')",
    "raw socket": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); print('WORKED')",
    "packet socket": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0); print('WORKED')",
    "become root": "os.setuid(0); print('WORKED')",
    "take groups": "os.setgroups([0]); print('WORKED')",
    "rename the host": "libc.unshare(0x4000000); socket.sethostname('x'); print('WORKED')",
}

# Not to be run without a sandbox, or not successful on every machine.
OTHERS = {
    "read process 1": "open('/proc/1/environ').read(); print('WORKED')",
    "kill everything": "os.kill(-1, 9)",
    "kill the parent": "os.kill(os.getppid(), 9)",
    "kill every number": """
        for pid in range(1, 70000):
            if pid != os.getpid():
                try: os.kill(pid, 9)
                except OSError: pass
    """,
    "kill the group": "os.killpg(0, 9)",
    "limit the first process": """
        import resource; resource.prlimit(1, resource.RLIMIT_CPU, (0, 0))
    """,
    "change the standard library": "open(os.__file__, 'a').write('#'); print('WORKED')",
    "add to the standard library": """
        open(os.path.dirname(os.__file__) + '/zz_new.py', 'w'); print('WORKED')
    """,
    "change installed packages": """
        import numpy
        open(os.path.dirname(os.path.dirname(numpy.__file__)) + '/zz.pth', 'w'); print('WORKED')
    """,
    "change the interpreter": "open(sys.executable, 'ab'); print('WORKED')",
    "write to the root": "open('/file', 'w'); print('WORKED')",
    "make the root writable": """
        if libc.mount(None, b'/', None, 32, None) == 0: print('WORKED')
        open('/file', 'w'); print('WORKED')
    """,
    "unmount": "if libc.umount2(b'/tmp', 2) == 0: print('WORKED')",
    "swap the root": "if libc.pivot_root(b'/', b'/tmp') == 0: print('WORKED')",
    "type into a terminal": """
        import fcntl, termios
        for name in ('/dev/tty', '/dev/console', '/dev/ptmx'):
            try: fcntl.ioctl(os.open(name, os.O_RDWR), termios.TIOCSTI, b'x'); print('WORKED')
            except OSError: pass
        try: fcntl.ioctl(1, termios.TIOCSTI, b'x')
        except PermissionError: pass
        else: print('WORKED')
    """,
    "read a disk": """
        import glob
        for name in glob.glob('/dev/[svn]d*') + ['/dev/mem', '/dev/kmsg']:
            try: open(name, 'rb').read(1); print('WORKED')
            except OSError: pass
    """,
    "change the kernel's settings": """
        open('/proc/sys/kernel/core_pattern', 'w').write('|/tmp/x'); print('WORKED')
    """,
}
