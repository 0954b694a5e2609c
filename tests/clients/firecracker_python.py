"""PyPI's firecracker-python, as far as it goes without a Docker daemon: its API client, unmodified.

Usage: firecracker_python.py VMM KERNEL
"""

import os
import subprocess
import sys
import tempfile
import time

from firecracker.api import Api
from firecracker.exceptions import APIError

VMM, KERNEL = sys.argv[1:3]


def start(directory, name):
    """A VMM and a client of it."""
    socket = os.path.join(directory, name + ".sock")
    process = subprocess.Popen([VMM, "--api-sock", socket, "--id", name], stdout=subprocess.DEVNULL)
    while not os.path.exists(socket):
        assert process.poll() is None, "the VMM ended"
        time.sleep(0.01)
    return process, Api(socket)


with tempfile.TemporaryDirectory() as directory:
    path = lambda name: os.path.join(directory, name)
    with open(path("disk"), "wb") as disk:
        disk.truncate(1 << 20)
    process, api = start(directory, "first")
    assert api.describe.get().json()["state"] == "Not started"
    api.boot.put(kernel_image_path=KERNEL, boot_args="console=ttyS0 quiet reboot=k panic=-1")
    api.machine_config.put(vcpu_count=1, mem_size_mib=64)
    api.drive.put(drive_id="rootfs", path_on_host=path("disk"), is_root_device=True, is_read_only=False)
    api.vsock.put(guest_cid=3, uds_path=path("vsock"))
    api.mmds.put(latest={"a": "b"})
    api.actions.put(action_type="InstanceStart")
    api.vm.patch(state="Paused")
    api.create_snapshot.put(mem_file_path=path("memory"), snapshot_path=path("state"), snapshot_type="Full")
    api.vm.patch(state="Resumed")
    assert api.vm_config.get().json()["machine-config"]["mem_size_mib"] == 64
    assert api.mmds.get().json() == {"latest": {"a": "b"}}
    try:
        api.boot.put(kernel_image_path=KERNEL)
        raise AssertionError("a running VM took a kernel")
    except APIError as error:
        assert "not supported after starting" in str(error)
    process.terminate()
    assert process.wait() == 143

    process, api = start(directory, "second")
    backend = {"backend_type": "File", "backend_path": path("memory")}
    api.load_snapshot.put(mem_backend=backend, snapshot_path=path("state"), resume_vm=True)
    assert api.describe.get().json()["state"] == "Running"
    assert process.wait(timeout=120) == 0
print("firecracker-python: ok")
