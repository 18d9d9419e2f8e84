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

/// What databases, version control and whoever writes a file before it has a name do with a directory.
const PROGRAMS: &str = r#"
import fcntl, mmap, os, sqlite3, subprocess
def run(*command):
    return subprocess.run(command, capture_output=True, text=True)
os.chdir('/v')

fd = os.open('.', os.O_TMPFILE | os.O_RDWR, 0o640)
os.write(fd, b'text that is cut')
os.ftruncate(fd, 4)
os.fchown(fd, 33, 34)
assert os.fstat(fd).st_nlink == 0 and os.listdir('.') == []
other = os.open(f'/proc/self/fd/{fd}', os.O_RDONLY)
assert os.pread(other, 9, 0) == b'text'
os.link(f'/proc/self/fd/{fd}', 'named', src_dir_fd=fd, follow_symlinks=True)
os.close(fd)
about = os.stat('named')
assert (about.st_mode, about.st_uid, about.st_gid) == (0o100640, 33, 34), about
assert open('named').read() == 'text'
fd = os.open('.', os.O_TMPFILE | os.O_WRONLY | os.O_EXCL)
try:
    os.link(f'/proc/self/fd/{fd}', 'never', src_dir_fd=fd, follow_symlinks=True)
    raise SystemExit('it got a name')
except FileNotFoundError:
    os.close(fd)
print('unnamed')

with open('mapped', 'w+b') as file:
    file.truncate(8192)
    memory = mmap.mmap(file.fileno(), 8192)
    memory[4095:4099] = b'abcd'
    memory.flush()
    file.seek(4095)
    assert file.read(4) == b'abcd'
    child = os.fork()
    if child == 0:
        memory[0:1] = b'z'
        os._exit(0)
    os.waitpid(child, 0)
    assert memory[0:1] == b'z'
print('mapped')

with open('lock', 'w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    assert run('flock', '-n', 'lock', 'true').returncode == 1
    fcntl.flock(file, fcntl.LOCK_UN)
    assert run('flock', '-n', 'lock', 'true').returncode == 0
    fcntl.lockf(file, fcntl.LOCK_EX)
    child = os.fork()
    if child == 0:
        try:
            fcntl.lockf(open('lock', 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print('locked')

for mode in 'delete', 'wal':
    base = sqlite3.connect(mode + '.db', timeout=0.1)
    assert base.execute('pragma journal_mode=' + mode).fetchone()[0] == mode
    base.execute('create table t (n integer)')
    base.commit()
    base.execute('begin immediate')
    base.executemany('insert into t values (?)', ((n,) for n in range(500)))
    second = sqlite3.connect(mode + '.db', timeout=0.1)
    assert second.execute('select count(*) from t').fetchone() == (0,)
    try:
        second.execute('begin immediate')
        raise SystemExit('two write at once')
    except sqlite3.OperationalError:
        pass
    base.commit()
    assert second.execute('select sum(n) from t').fetchone() == (124750,)
    assert second.execute('pragma integrity_check').fetchone() == ('ok',)
print('kept')

os.environ |= {'HOME': '/v', 'GIT_AUTHOR_NAME': 'a', 'GIT_AUTHOR_EMAIL': 'a', 'GIT_COMMITTER_NAME': 'a',
    'GIT_COMMITTER_EMAIL': 'a'}
os.mkdir('tree')
for number in range(30):
    open(f'tree/{number}', 'w').write('line\n' * number)
for command in ['init', '-q'], ['add', 'tree'], ['commit', '-qm', 'one'], ['mv', 'tree', 'moved'], \
        ['commit', '-qm', 'two'], ['gc', '-q'], ['fsck', '--strict'], ['diff', '--quiet', 'HEAD']:
    end = run('git', *command)
    assert end.returncode == 0, (command, end)
print('committed')
"#;

/// If it fails, a database loses what it wrote to a shared directory, two programs hold a lock at once, or
/// one that writes files before they have names does not work there.
#[test]
fn programs_work_on_a_shared_directory() {
    let engine = Engine::new("mounts-programs");
    let (shared, script) = (engine.path("shared"), engine.path("script"));
    fs::create_dir(&shared).unwrap();
    fs::write(&script, PROGRAMS).unwrap();
    // The host's programs.
    let said = engine.text(&format!(
        "run --rm --network none -v /usr:/usr:ro -v /usr/lib:/lib:ro -v /usr/lib64:/lib64:ro
         -v {script}:/script:ro -v {shared}:/v busybox /usr/bin/python3 /script"
    ));
    assert_eq!(said, "unnamed\nmapped\nlocked\nkept\ncommitted");
    assert_eq!(
        fs::read_to_string(format!("{shared}/named")).unwrap(),
        "text"
    );
    assert!(!Path::new(&format!("{shared}/never")).exists());
}
