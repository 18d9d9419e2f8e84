//! What a configuration makes of a container.

use super::*;

/// If it fails, a container is not the user, or may do more or less, than its configuration says.
#[test]
fn containers_are_what_their_configuration_says() {
    let guest = Guest::start("limits");
    let output = guest.script(
        "plain",
        spec(&[]),
        r#"hostname; grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)|Seccomp:|NoNewPrivs' /proc/self/status
        echo "pid $$"; ls /proc/keys /dev; wc -c </proc/keys; echo x >/proc/sys/kernel/hostname
        mknod /tmp/d b 254 0 && head -c 1 /tmp/d; cat /proc/1/cgroup; ls / | head -1; umask
        grep -c . /proc/1/mountinfo; ls /sys/firmware | wc -l; touch /written && echo wrote"#,
    );
    for part in [
        "box\n",
        "CapEff:\t00000000a80425fb",
        "CapBnd:\t00000000a80425fb",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t0",
        "Seccomp:\t0",
        "pid 1\n",
        "0::/\n",
        "0022\n",
        "wrote\n",
        "Read-only file system",
        "Operation not permitted",
    ] {
        assert!(output.contains(part), "no {part:?} in {output}");
    }

    let mut strict = spec(&[]);
    let part = &mut strict["process"];
    part["user"] = json!({"uid": 65534, "gid": 7, "additionalGids": [8, 9], "umask": 0o77});
    part["capabilities"] = json!({"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"],
        "permitted": ["CAP_KILL"], "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]});
    part["noNewPrivileges"] = json!(true);
    part["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99}]);
    part["oomScoreAdj"] = json!(333);
    part["cwd"] = json!("/made/here");
    strict["root"]["readonly"] = json!(true);
    strict["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1", "kernel.shmmni": "1234"});
    strict["linux"]["resources"]["memory"] = json!({"limit": 64 << 20, "swap": 64 << 20});
    strict["linux"]["resources"]["pids"] = json!({"limit": 20});
    strict["linux"]["resources"]["cpu"] = json!({"quota": 50000, "period": 100000, "shares": 512});
    strict["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["sync"], "action": "SCMP_ACT_KILL_PROCESS"},
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]});
    let mounts = strict["mounts"].as_array_mut().unwrap();
    mounts.push(
        json!({"destination": "/scratch/deep", "type": "tmpfs", "source": "tmpfs",
        "options": ["size=4m", "mode=1777", "noexec"]}),
    );
    mounts.push(
        json!({"destination": "/usr/bin", "type": "tmpfs", "source": "tmpfs",
        "options": ["tmpcopyup", "ro"]}),
    );
    let output = guest.script(
        "strict",
        strict,
        r#"id; umask; pwd; ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj; echo $HOME
        grep -E 'Cap(Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp:' /proc/self/status
        cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni
        cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max
        mkdir /scratch/deep/x; sync; echo "sync $?"; touch /x; ls /usr/bin | wc -l; touch /usr/bin/x
        cp /bin/busybox /scratch/deep/true; echo ok >/scratch/deep/y; cat /scratch/deep/y
        true | true; exit 0"#,
    );
    for part in [
        "uid=65534(nobody) gid=7 groups=8,9",
        "0077\n/made/here\n77\n99\n333\n/\n",
        "CapEff:\t0000000000000020",
        "CapBnd:\t0000000000000020",
        "CapAmb:\t0000000000000020",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "1\n1234\n67108864\n20\n50000 100000\n",
        "sync 159",
        "Operation not supported",
        "/x: Read-only file system",
        "/usr/bin/x: Read-only file system",
        "\nok\n",
    ] {
        assert!(output.contains(part), "no {part:?} in {output}");
    }
    guest.power_off();
}

/// If it fails, a container with a user namespace has none, or does not start.
#[test]
fn root_in_a_user_namespace_is_nobody_outside() {
    let guest = Guest::start("userns");
    let mut mapped = spec(&[]);
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    mapped["linux"]["uidMappings"] = map.clone();
    mapped["linux"]["gidMappings"] = map;
    mapped["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "user"}));
    // Which only the owner of the guest's cgroups may mount.
    mapped["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| mount["destination"] != "/sys/fs/cgroup");
    mapped["linux"]["sysctl"] = json!({"net.ipv4.ping_group_range": "0 7"});
    mapped["linux"]["maskedPaths"] = json!([]);
    mapped["process"]["args"] = json!([
        "sh",
        "-c",
        "id -u; cat /proc/self/uid_map; ls /sys/class/net; cat /proc/sys/net/ipv4/ping_group_range
         echo up; exec sleep 1000"
    ]);
    let mut main = guest.run("main", &mapped);
    let output = main.read_until("up\n");
    for part in ["100000      65536", "lo\n", "0\t7\n"] {
        assert!(output.contains(part), "{part:?}: {output}");
    }
    assert!(output.starts_with("0\n"), "{output}");
    let mut request = ContainerRequest::new();
    request.id = "main".to_owned();
    let processes = guest.client.pids(request).unwrap().processes;
    assert_eq!(processes[0].uid, 100_000);
    let mut one = guest
        .exec(
            "main",
            "one",
            &process(&["sh", "-c", "id -u; cat /proc/1/comm"]),
        )
        .unwrap();
    assert_eq!(one.output(), "0\nsleep\n");
    guest.power_off();
}

/// If it fails, a privileged container of an engine's has nodes with the numbers of the host's devices, which are
/// other devices in the guest, or lacks what only the guest has; with users of its own, it does not start.
#[test]
fn who_may_use_all_devices_has_the_guests() {
    let guest = Guest::start("devices");
    let mut privileged = spec(&[]);
    privileged["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    privileged["linux"]["devices"] = json!([
        {"path": "/dev/fuse", "type": "c", "major": 1, "minor": 3, "uid": 7, "gid": 8},
        {"path": "/dev/of-the-host", "type": "b", "major": 8, "minor": 0},
    ]);
    let script =
        "cd /dev; stat -c '%n %t:%T %u' fuse net/tun loop-control loop63 of-the-host ptmx pmem1
        exec 3<>fuse; head -c 4 pmem1 | wc -c";
    let output = guest.script("privileged", privileged.clone(), script);
    let nodes =
        "fuse a:e5 0\nnet/tun a:c8 0\nloop-control a:ed 0\nloop63 7:3f 0\nof-the-host 8:0 0\n";
    assert!(output.starts_with(nodes), "{output}");
    let output = output.replace(nodes, "");
    assert!(output.starts_with("ptmx 0:0 0\npmem1 103:"), "{output}");
    assert!(output.ends_with("\n4\n"), "{output}");

    let linux = &mut privileged["linux"];
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    (linux["uidMappings"], linux["gidMappings"]) = (map.clone(), map);
    let namespaces = linux["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "user"}));
    linux["devices"] = json!([]);
    let mounts = privileged["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
    privileged["linux"]["maskedPaths"] = json!([]);
    let output = guest.script("mapped", privileged, "cd /dev; stat -c '%n %t:%T' fuse");
    assert_eq!(output, "fuse a:e5\n");
    guest.power_off();
}
