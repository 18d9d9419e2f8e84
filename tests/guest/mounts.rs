//! Where mounts land: the image's links decide, as the container sees them, and what is missing is made.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::container::{Engine, code};
use crate::harness::host;
use crate::runc::Runtime;

/// Links as distributions ship them: with `..`, to where nothing is yet, and one that leads nowhere.
const LINKS: &str = "mkdir -p run var etc real a; rm -rf etc/resolv.conf
    ln -s ../run var/run; ln -s ../real rel; ln -s ../real a/b; ln -s loop loop
    ln -s ../run/x/resolv etc/resolv.conf; ln -s /usr/share/nowhere/zone etc/localtime
    ln -s ../gone/dir etc/dir; ln -s ../../../../../../tmp/out etc/out";

/// What is mounted on them, from the directory `$d` and the file `$d/file`.
const MOUNTS: [(&str, &str, &str); 8] = [
    ("/var/run/sub", "d", "/run/sub/file"),
    ("/var/run/socket", "d/file", "/run/socket"),
    ("/rel/x", "d", "/real/x/file"),
    ("/a/b/y", "d", "/real/y/file"),
    ("/etc/localtime", "d/file", "/usr/share/nowhere/zone"),
    ("/etc/dir", "d", "/gone/dir/file"),
    ("/etc/out", "d", "/tmp/out/file"),
    ("/plain/deep", "d", "/plain/deep/file"),
];

/// What a container says that has all of them.
fn look() -> String {
    let files: Vec<_> = MOUNTS.iter().map(|(.., file)| *file).collect();
    let files = files.join(" ");
    format!(
        "for one in {files}; do echo $one:$(cat $one); done; busybox grep -c ' /run/t tmpfs' /proc/mounts
         pwd -P"
    )
}

/// What [`look`] prints.
fn seen() -> String {
    let files = MOUNTS.iter().map(|(.., file)| format!("{file}:here\n"));
    let mut all: String = files.collect();
    all.push_str("1\n/gone/work");
    all
}

/// The image `links`, with volumes that it does not have.
fn load_image(engine: &Engine) {
    let dir = engine.path("image");
    fs::create_dir_all(format!("{dir}/root")).unwrap();
    let config = json!({"architecture": "amd64", "os": "linux", "config":
        {"Cmd": ["sh"], "Volumes": {"/vol/new": {}, "/rel/vol": {}}},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:DIGEST"]}});
    let manifest =
        json!([{"Config": "config.json", "RepoTags": ["links:latest"], "Layers": ["layer.tar"]}]);
    fs::write(format!("{dir}/config"), config.to_string()).unwrap();
    fs::write(format!("{dir}/manifest.json"), manifest.to_string()).unwrap();
    host(&format!(
        "cd {dir}/root; mkdir bin; cp /bin/busybox bin
         for one in sh cat grep ls pwd stat id; do ln -s busybox bin/$one; done
         {LINKS}; ln -s /gone/work work
         echo root:x:0:0::/root:/bin/sh >etc/passwd; echo www:x:33:34::/:/bin/sh >>etc/passwd
         printf 'root:x:0:\\nwheel:x:10:root\\nlogs:x:5:www\\n' >etc/group
         tar -cf ../layer.tar --owner=0 --group=0 .; cd ..
         sed \"s/DIGEST/$(sha256sum <layer.tar | cut -d ' ' -f 1)/\" config >config.json
         tar -cf image.tar manifest.json config.json layer.tar"
    ));
    engine.text(&format!("load -i {dir}/image.tar"));
    fs::create_dir_all(engine.path("d")).unwrap();
    fs::write(engine.path("d/file"), "here\n").unwrap();
}

/// If it fails, a container starts without a mount that was asked for, or with one elsewhere, images of the
/// RHEL family do not start, a program lacks its volume, its host's name or its groups.
#[test]
fn a_container_has_what_was_asked_for_where_links_lead() {
    let engine = Engine::for_processes("mounts");
    load_image(&engine);
    let volumes: String = MOUNTS
        .iter()
        .map(|(target, source, _)| format!("-v {}:{target} ", engine.path(source)))
        .collect();
    for isolation in ["vm", "process"] {
        let run = format!("run --rm --isolation={isolation} --network none --hostname box");
        let line = format!("{run} {volumes} --tmpfs /var/run/t -w /work links");
        let script = format!(
            "{}; cat /etc/hostname; stat -c %u:%a /vol/new /real/vol; ls /run/x/resolv
             grep Groups: /proc/self/status",
            look()
        );
        let said = engine.script(&line, &script);
        let groups = "Groups:\t0 10";
        let expected = format!("{}\nbox\n0:755\n0:755\n/run/x/resolv\n{groups}", seen());
        assert_eq!(said, expected, "{isolation}");
        for (user, groups) in [("www", "5 34"), ("1000:100", "100")] {
            let line = format!("{run} -u {user} links grep Groups: /proc/self/status");
            assert_eq!(
                engine.text(&line),
                format!("Groups:\t{groups}"),
                "{isolation}"
            );
        }
        for target in ["/loop/x", "/etc/passwd"] {
            let volume = format!("-v {}:{target}", engine.path("d"));
            let end = engine.run(&format!("{run} {volume} links pwd"));
            let errors = String::from_utf8_lossy(&end.stderr);
            assert_eq!(code(&end), 125, "{isolation} {target}: {errors}");
            assert!(errors.contains(target), "{isolation} {target}: {errors}");
        }
    }
}

/// If it fails, what was made to mount on is part of a container's changes, and of images made of it.
#[test]
fn places_of_mounts_are_no_changes() {
    let engine = Engine::new("mounts-diff");
    load_image(&engine);
    let volume = format!("-v {}:/var/run/sub", engine.path("d"));
    engine.text(&format!("run --name one --network none {volume} links pwd"));
    let said = engine.text("diff one");
    assert!(
        !said.contains("/run/sub") && !said.contains("/vol/new"),
        "{said}"
    );
}

/// If it fails, engines' containers lack mounts in the same way, with a user namespace or without.
#[test]
fn a_bundle_has_its_mounts_where_links_lead() {
    let runtime = Runtime::new("runc-mounts");
    let source = runtime.path("d");
    fs::create_dir(&source).unwrap();
    fs::write(format!("{source}/file"), "here\n").unwrap();
    for (name, readonly, mapped) in [
        ("plain", false, false),
        ("readonly", true, false),
        ("mapped", false, true),
    ] {
        let bundle = runtime.bundle(name, &look(), |config| {
            let mounts = config["mounts"].as_array_mut().unwrap();
            for (target, source, _) in MOUNTS {
                mounts.push(
                    json!({"destination": target, "type": "bind", "options": ["bind"],
                    "source": runtime.path(source)}),
                );
            }
            mounts.push(json!({"destination": "/var/run/t", "type": "tmpfs", "source": "tmpfs"}));
            config["process"]["cwd"] = "/work".into();
            config["root"]["readonly"] = readonly.into();
            if mapped {
                let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
                namespaces.push(json!({"type": "user"}));
                let ids = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
                config["linux"]["uidMappings"] = ids.clone();
                config["linux"]["gidMappings"] = ids;
            }
        });
        host(&format!(
            "cd {bundle}/rootfs; {LINKS}; ln -s /gone/work work"
        ));
        let end = runtime.run(&format!("run --bundle {bundle} one"));
        let said = String::from_utf8_lossy(&end.stdout);
        assert_eq!(said.trim_end(), seen(), "{name}: {end:?} {}", runtime.log());
    }
    let bundle = runtime.bundle("loop", "true", |config| {
        let mount = json!({"destination": "/loop/x", "type": "tmpfs", "source": "tmpfs"});
        config["mounts"].as_array_mut().unwrap().push(mount);
    });
    host(&format!("cd {bundle}/rootfs; {LINKS}"));
    assert_eq!(code(&runtime.run(&format!("run --bundle {bundle} one"))), 1);
    assert!(runtime.log().contains("/loop/x"), "{}", runtime.log());
    assert!(!Path::new("/tmp/out").exists());
    runtime.nothing_is_left();
}
