"""The guest's side of storm.rs: unbinds drivers whose devices work, binds them again, and looks.

usage: storm.py WARM_UP ROUNDS

One process, with a thread for each load: to start a program takes longer in the lab than a round.
"""

import ctypes
import errno
import faulthandler
import fcntl
import mmap
import os
import re
import socket
import struct
import sys
import threading
import time

BUS = "/sys/bus/virtio"
HOST, GUEST = "10.77.7.1", "10.77.7.2"
# In seconds; far more than anything takes.
PATIENCE = 60
# Where the disks' loads are, behind a sector for each round.
START, END = 1 << 20, 8 << 20
libc = ctypes.CDLL(None, use_errno=True)


def wait_for(what, condition):
    """Waits until a condition holds, and returns what it then is."""
    until = time.monotonic() + PATIENCE
    while not (value := condition()):
        if time.monotonic() > until:
            raise TimeoutError(f"no {what}")
        time.sleep(0.002)
    return value


def call(result):
    """The result of a C function, or what went wrong."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


class Device:
    """A device, its driver, and what it does for us."""

    # The driver's name on the bus.
    driver = None

    def __init__(self):
        found = os.listdir(f"{BUS}/drivers/{self.driver}")
        (self.name,) = (name for name in found if name.startswith("virtio") and self.is_it(name))
        self.steps, self.time = 0, 0

    def is_it(self, name):
        """Whether the device of this name is ours, where the driver has several."""
        return True

    def node(self, group):
        """The only entry of a directory of the device's in sysfs."""
        (node,) = os.listdir(f"{BUS}/devices/{self.name}/{group}")
        return node

    def write(self, what):
        """Binds or unbinds."""
        with open(f"{BUS}/drivers/{self.driver}/{what}", "w") as file:
            file.write(self.name)

    def open(self):
        """Before the load."""

    def close(self):
        """After the load, while there is no driver."""

    def loads(self):
        """Functions, each for a thread of its own that calls it until it returns a false value or
        fails, which it must when the driver goes."""
        return []

    def wait(self, i):
        """How long the load goes on in round `i`."""
        time.sleep(i % 5 / 200)

    def check(self, i):
        """After round `i`, with the driver bound again."""

    def storm(self, i):
        """Round `i`."""
        start = time.monotonic()
        faulthandler.dump_traceback_later(2 * PATIENCE)
        step = "open"
        try:
            self.open()
            step = "load"
            threads = [threading.Thread(target=self.run, args=[load]) for load in self.loads()]
            for thread in threads:
                thread.daemon = True
                thread.start()
            self.wait(i)
            step = "unbind"
            self.write("unbind")
            step = "end of the load"
            for thread in threads:
                thread.join(PATIENCE)
                if thread.is_alive():
                    raise TimeoutError("it hangs")
            step = "close"
            self.close()
            step = "bind"
            self.write("bind")
            step = "check"
            self.check(i)
        except (OSError, ValueError) as error:
            print(f"round {i}: {self.driver}: {step}: {error!r}", flush=True)
            os._exit(93)
        self.time += time.monotonic() - start

    def run(self, step):
        try:
            while step():
                self.steps += 1
        except OSError:
            pass


class Disk(Device):
    driver = "virtio_blk"

    def is_it(self, name):
        return os.path.exists(f"{BUS}/devices/{name}/block/vdc")

    def path(self):
        return "/dev/" + self.node("block")

    def open(self):
        self.fd = os.open(self.path(), os.O_RDWR | os.O_DIRECT)

    def close(self):
        os.close(self.fd)

    def loads(self):
        return [self.mover(os.pwritev, 64 << 10), self.mover(os.preadv, 1 << 20)]

    def mover(self, function, size):
        """Moves data by a function from or to one place after the other."""
        buffer, at = mmap.mmap(-1, size), START

        def step():
            nonlocal at
            at = at + size if at + 2 * size <= END else START
            return function(self.fd, [buffer], at)

        return step

    def check(self, i):
        # As a sector that is written alone, and flushed.
        buffer = mmap.mmap(-1, 512)
        buffer.write(b"round %d\n" % i)
        fd = os.open(self.path(), os.O_RDWR | os.O_DIRECT)
        try:
            os.pwritev(fd, [buffer], i * 512)
            os.fsync(fd)
        finally:
            os.close(fd)


class Pmem(Disk):
    driver = "virtio_pmem"

    def is_it(self, name):
        return True

    def path(self):
        return "/dev/pmem0"

    def loads(self):
        return [self.mover(os.pwritev, 64 << 10), lambda: os.fsync(self.fd) is None]

    def check(self, i):
        wait_for("pmem0", self.is_there)
        super().check(i)

    def is_there(self):
        # The kernel makes the disk in its own time, and its node before the disk.
        try:
            os.close(os.open(self.path(), os.O_RDONLY))
            return True
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENXIO):
                return False
            raise


class Net(Device):
    driver = "virtio_net"

    def __init__(self):
        super().__init__()
        self.up()

    def up(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            name = self.node("net").encode()
            address = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(GUEST))
            fcntl.ioctl(control, 0x8916, struct.pack("16s16s8x", name, address))  # SIOCSIFADDR
            fcntl.ioctl(control, 0x8914, struct.pack("16sh22x", name, 1))  # SIOCSIFFLAGS, IFF_UP

    def open(self):
        self.socket = self.pinger()

    def pinger(self):
        return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)

    def close(self):
        self.socket.close()

    def loads(self):
        request, flag = self.echo(0xFFFF, bytes(1400)), socket.MSG_DONTWAIT

        def step():
            self.socket.sendto(request, (HOST, 0))
            try:
                while self.socket.recv(2048, flag):
                    pass
            except BlockingIOError:
                return True

        return [step]

    def echo(self, i, data=b""):
        def packet(checksum):
            return struct.pack("!BBHHH", 8, 0, checksum, 0xC0F, i) + data

        words = sum(struct.unpack(f"!{4 + len(data) // 2}H", packet(0)))
        words = (words >> 16) + (words & 0xFFFF)
        return packet(~(words + (words >> 16)) & 0xFFFF)

    def is_up(self):
        with open(f"/sys/class/net/{self.node('net')}/operstate") as file:
            return file.read() == "up\n"

    def check(self, i):
        self.up()
        # What is sent before is lost, and who asks for an address asks again after a second.
        wait_for("link", self.is_up)
        with self.pinger() as pinger:
            pinger.settimeout(0.2)

            def answered():
                pinger.sendto(self.echo(i), (HOST, 0))
                try:
                    while True:
                        answer = pinger.recv(2048)
                        if answer[20] == 0 and answer[24:28] == struct.pack("!HH", 0xC0F, i):
                            return True
                except TimeoutError:
                    return False

            wait_for("answer", answered)


class Rng(Device):
    driver = "virtio_rng"

    def open(self):
        self.fd = os.open("/dev/hwrng", os.O_RDONLY)

    def close(self):
        os.close(self.fd)

    def loads(self):
        return [lambda: os.read(self.fd, 4096)]

    def check(self, i):
        self.open()
        if len(os.read(self.fd, 64)) != 64:
            raise ValueError("too few bytes")
        self.close()


class Vsock(Device):
    driver = "vmw_vsock_virtio_transport"

    def connect(self):
        connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        connection.connect((2, 3000))
        return connection

    def open(self):
        self.connection = self.connect()

    def close(self):
        self.connection.close()

    def loads(self):
        # The host sends back what it gets.
        data = bytes(16 << 10)

        def send():
            self.connection.sendall(data)
            return True

        return [send, lambda: self.connection.recv(64 << 10)]

    def check(self, i):
        with self.connect() as connection:
            text = b"round %d" % i
            connection.sendall(text)
            if connection.recv(100) != text:
                raise ValueError("another answer")


class Balloon(Device):
    """The load is that the balloon is filled: the driver goes when it has not got far, or far. In
    every twentieth round the guest has something to report, too."""

    driver = "virtio_balloon"

    def inflated(self):
        with open("/proc/vmstat") as file:
            return int(re.search("balloon_inflate ([0-9]+)", file.read())[1])

    def open(self):
        self.before = self.inflated()

    def wait(self, i):
        super().wait(i)
        if i % 20 == 0:
            memory = mmap.mmap(-1, 24 << 20)
            for at in range(0, len(memory), mmap.PAGESIZE):
                memory[at] = 1
            memory.close()
            # It reports after two seconds.
            time.sleep(2 + i % 3 / 50)

    def check(self, i):
        wait_for("page in the balloon", lambda: self.inflated() > self.before)
        self.steps += self.inflated() - self.before


class Fs(Device):
    driver = "virtiofs"

    def __init__(self):
        super().__init__()
        self.mount()

    def mount(self):
        call(libc.mount(b"storm", b"/mnt", b"virtiofs", 0, None))

    def open(self):
        self.fd = os.open("/mnt/load", os.O_RDWR | os.O_CREAT)

    def close(self):
        try:
            os.close(self.fd)
        except OSError:
            # It tells the device, which is not there.
            pass
        # The driver does not come back while a mount holds what it was.
        call(libc.umount2(b"/mnt", 2))  # MNT_DETACH

    def loads(self):
        data = bytes(64 << 10)

        def step():
            os.pwrite(self.fd, data, 0)
            os.fsync(self.fd)
            return os.stat("/mnt")

        return [step]

    def check(self, i):
        self.mount()
        fd = os.open("/mnt/rounds", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(fd, b"round %d\n" % i)
        os.fsync(fd)
        os.close(fd)


def main():
    warm_up, rounds = map(int, sys.argv[1:])
    # The kernel's messages about disks that go would hide ours.
    libc.klogctl(8, None, 1)
    devices = [kind() for kind in (Disk, Pmem, Net, Rng, Vsock, Balloon, Fs)]
    for i in range(warm_up + rounds):
        if i == warm_up:
            input("storm warmed up\n")
        for device in devices:
            device.storm(i)
        if i % 20 == 19:
            print(f"{i + 1} rounds.", flush=True)
    for device in devices:
        print(f"{device.driver}: {device.time:.0f} s, {device.steps} steps")
        if not device.steps:
            sys.exit(94)
    input("storm over\n")


main()
