//! Files in and out of containers, volumes and disks.

use super::*;

/// If it fails, files are lost on their way in or out of a container.
#[test]
fn files_are_copied_in_and_out() {
    let guest = Guest::start("copy");
    let mut main = guest.run("main", &spec(&["sh", "-c", "echo up; exec sleep 1000"]));
    main.read_until("up\n");
    let mut request = CopyRequest::new();
    request.id = "main".to_owned();
    request.path = "/etc".to_owned();
    request.token = "out".to_owned();
    let mut stream = guest.client.stream(Name::Archive, "out").unwrap();
    let archive = thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut archive = Vec::new();
            stream.read_to_end(&mut archive).unwrap();
            archive
        });
        guest.client.copy_out(request.clone()).unwrap();
        reader.join().unwrap()
    });
    assert_eq!(archive.len() % 512, 0);
    request.path = "/tmp".to_owned();
    request.token = "in".to_owned();
    let mut stream = guest.client.stream(Name::Archive, "in").unwrap();
    let sender = thread::spawn(move || stream.write_all(&archive).unwrap());
    guest.client.copy_in(request.clone()).unwrap();
    sender.join().unwrap();
    let compare = process(&[
        "sh",
        "-c",
        "cmp /etc/passwd /tmp/etc/passwd && ls -ln /tmp/etc/passwd",
    ]);
    let mut one = guest.exec("main", "compare", &compare).unwrap();
    let output = one.output();
    assert!(output.starts_with("-rw-r--r--    1 0        0"), "{output}");
    assert_eq!(one.wait().exit_code, 0);
    request.path = "etc".to_owned();
    assert!(guest.client.copy_out(request.clone()).is_err());
    guest.power_off();
}

/// What of the share `data` is mounted in the guest, and where.
fn share(target: &str, path: &str, readonly: bool) -> api::Storage {
    let mut share = api::Share::new();
    (share.tag, share.path) = ("data".to_owned(), path.to_owned());
    let mut storage = api::Storage::new();
    storage.target = format!("{STORAGE}/{target}");
    storage.readonly = readonly;
    storage.kind = Some(api::storage::Kind::Share(share));
    storage
}

/// If it fails, a volume is not there, shows more than it should or can be written when it must not;
/// or what a container wrote to its disk is lost with the VM.
#[test]
fn volumes_and_disks_are_mounted() {
    let dir = TempDir::new("agent-volumes");
    let shared = dir.join("shared");
    std::fs::create_dir_all(shared.join("sub")).unwrap();
    std::fs::write(shared.join("sub/inner"), "inner\n").unwrap();
    std::fs::write(shared.join("single"), "single\n").unwrap();
    std::fs::write(shared.join("secret"), "secret\n").unwrap();
    std::os::unix::fs::symlink("/etc", shared.join("link")).unwrap();
    let disk = dir.join("upper.ext4");
    host(&format!(
        "truncate -s 32M {0}; mke2fs -q -F -t ext4 {0}",
        disk.display()
    ));
    let disk = format!("path={},id=upper", disk.display());
    let fs = format!("tag=data,path={}", shared.display());
    for round in 0..2 {
        let guest = Guest::start_with(&format!("vol{round}"), &["--disk", &disk, "--fs", &fs]);
        let mut overlay = api::Overlay::new();
        overlay.lower.push("/dev/pmem1".to_owned());
        overlay.upper = Some(api::overlay::Upper::Disk("serial=upper".to_owned()));
        let mut root = api::Rootfs::new();
        root.kind = Some(api::rootfs::Kind::Overlay(overlay));
        let script = r#"cat /kept 2>/dev/null; echo kept >/kept; cat /sub/inner /single; ls /sub /
            echo more >/sub/more; echo x >/single; cat /etc/hosts; ls -d /root/.x"#;
        let mut all = spec(&["sh", "-c", script]);
        for (source, target) in [("sub", "/sub"), ("single", "/single")] {
            all["mounts"].as_array_mut().unwrap().push(json!({"destination": target,
                "type": "bind", "source": format!("{STORAGE}/{source}"), "options": ["rbind", "rw"]}));
        }
        let storages = vec![share("sub", "sub", false), share("single", "/single", true)];
        let mut one = guest
            .create_on("disk", &all, root.clone(), storages)
            .unwrap();
        guest.start_it("disk").unwrap();
        let output = one.output();
        assert_eq!(output.starts_with("kept\n"), round == 1, "{output}");
        assert!(
            output.contains("inner\nsingle\n") && !output.contains("secret"),
            "{output}"
        );
        assert!(
            output.contains("can't create /single: Read-only file system"),
            "{output}"
        );
        assert_eq!(
            std::fs::read_to_string(shared.join("sub/more")).unwrap(),
            "more\n"
        );
        one.wait();
        guest.delete("disk").unwrap();
        // A link in a share leads nowhere else.
        let outside = vec![share("out", "link/passwd", false)];
        assert!(guest.create_on("out", &all, root, outside).is_err());
        guest.power_off();
    }
}
