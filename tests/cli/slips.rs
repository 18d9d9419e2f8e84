//! What people get wrong when they type the commands of containers, images, volumes and networks: each slip
//! gets one or two lines that name the thing, the cause and the way out. None of them needs KVM.

use std::fs;
use std::process::Command;

use super::harness::{Dir, Run, finish, program, start};

/// The command line, the exit code, and what the answer has in it. `@` is a directory of the test's own, with
/// the file `file` and the directory `dir`; `here:1` is an image, `made` a container.
const SLIPS: &[(&str, i32, &[&str])] = &[
    // Commands and options that there are not.
    ("rnu busybox", 2, &["'rnu'", "'run'", "--help"]),
    ("contianer ls", 2, &["'contianer'", "'container'"]),
    ("build .", 2, &["no build", "Podman", "'load'"]),
    ("compose up", 2, &["no compose", "cofferdam-runc"]),
    ("search nginx", 2, &["no search", "registry"]),
    ("swarm init", 2, &["no swarm"]),
    ("container lss", 2, &["'lss'", "'ls'"]),
    ("volume make v", 2, &["'make'", "--help"]),
    ("run --dettach here:1", 125, &["'--dettach'", "'--detach'"]),
    ("run --nmae x here:1", 125, &["'--nmae'", "'--name'"]),
    ("run --gpus all here:1", 125, &["no --gpus", "--device"]),
    ("run --link db here:1", 125, &["no --link", "--network"]),
    ("run --userns host here:1", 125, &["no --userns"]),
    ("ps --filtre x", 125, &["'--filtre'", "'--filter'"]),
    // What is missing.
    ("run", 125, &["<IMAGE>", "--help"]),
    ("exec made", 125, &["required", "--help"]),
    ("run --name", 125, &["'--name", "value"]),
    ("stop", 125, &["<CONTAINER>", "required"]),
    ("rename made", 125, &["<NAME>", "required"]),
    ("update made", 1, &["--memory", "--restart"]),
    ("login -p x r.example", 1, &["user's name", "--username"]),
    // Numbers and their limits.
    ("create --cpus 0 here:1", 125, &["'--cpus", "0.01"]),
    ("create --cpus many here:1", 125, &["'--cpus", "'many'"]),
    ("create -m 1k here:1", 125, &["'--memory", "at least 6MiB"]),
    (
        "create -m 100000g here:1",
        125,
        &["'--memory", "at most 4TiB"],
    ),
    ("create -m lots here:1", 125, &["'--memory", "512m"]),
    (
        "create -m 64m --memory-swap 32m here:1",
        1,
        &["--memory-swap", "--memory 64MiB"],
    ),
    (
        "create --cpu-shares 1 here:1",
        125,
        &["'--cpu-shares", "2..=262144"],
    ),
    (
        "create --cpuset-cpus 3-1 here:1",
        125,
        &["'--cpuset-cpus", "0-3,6"],
    ),
    (
        "create --ulimit files=1 here:1",
        125,
        &["'--ulimit", "files"],
    ),
    (
        "create --health-interval 5 here:1",
        125,
        &["'--health-interval", "30s"],
    ),
    (
        "create --restart sometimes here:1",
        125,
        &["'--restart", "sometimes"],
    ),
    (
        "create --stop-signal NONE here:1",
        1,
        &["no signal \"NONE\""],
    ),
    // Ports and networks.
    (
        "create -p 80:99999 here:1",
        125,
        &["'--publish", "99999", "65535"],
    ),
    ("create -p http here:1", 125, &["'--publish", "8080:80"]),
    ("create -p 1-3:1-2 here:1", 125, &["'--publish", "range"]),
    (
        "create --network nowhere here:1",
        1,
        &["nowhere", "network create"],
    ),
    ("create --network host here:1", 125, &["'--network", "host"]),
    ("create --dns google here:1", 125, &["'--dns", "google"]),
    (
        "network create --subnet 10.0.0.0 n",
        125,
        &["'--subnet", "10.0.0.0"],
    ),
    ("network rm nowhere", 1, &["nowhere"]),
    // Paths of the wrong kind.
    (
        "create -v @/none:/x:ro,dev,nope here:1",
        125,
        &["'--volume", "nope"],
    ),
    (
        "create --mount type=bind,source=@/none,target=/x here:1 true",
        1,
        &["/none", "No such file"],
    ),
    (
        "create -v rel/ative:/x here:1",
        125,
        &["'--volume", "rel/ative"],
    ),
    ("create -v v:x here:1", 125, &["'--volume", "absolute"]),
    (
        "create --env-file @/none here:1",
        1,
        &["/none", "No such file"],
    ),
    (
        "create --device @/file here:1",
        1,
        &["/file", "block devices"],
    ),
    ("load -i @/none.tar", 1, &["/none.tar", "No such file"]),
    ("load -i @/file", 1, &["/file"]),
    (
        "cp made:/x made:/y",
        1,
        &["cp is between", "CONTAINER:PATH"],
    ),
    // Names that nothing has, that are taken, or that cannot be.
    (
        "run --pull never nothing",
        125,
        &["\"nothing\"", "cofferdam pull"],
    ),
    ("create --pull never here", 1, &["here:latest", "tag 1"]),
    ("run UPPER", 125, &["\"UPPER\"", "alpine:3.20"]),
    (
        "create --name made here:1 true",
        1,
        &["\"made\"", "in use", "another name"],
    ),
    (
        "create --name a/b here:1 true",
        1,
        &["\"a/b\"", "[a-zA-Z0-9]"],
    ),
    ("rename made ../x", 1, &["\"../x\"", "[a-zA-Z0-9]"]),
    ("logs nobody", 1, &["nobody"]),
    ("exec made true", 1, &["made", "not running"]),
    ("inspect nobody", 1, &["nobody"]),
    ("volume rm nothing", 1, &["nothing"]),
    (
        "volume create --opt size=much v",
        1,
        &["size=much", "type=image"],
    ),
    ("rmi nothing", 1, &["\"nothing\"", "cofferdam images"]),
    ("rmi here:1", 1, &["here:1", "used by container", "--force"]),
    // Times, templates and filters.
    (
        "logs --since yesterday made",
        125,
        &["'--since", "2026-01-31"],
    ),
    (
        "ps --format {{.Nothing}} -a",
        1,
        &["{{.Nothing}}", "no Nothing"],
    ),
    ("images --filter colour=red", 125, &["colour", "dangling"]),
    ("ps --filter colour=red", 1, &["colour", "status"]),
];

struct Engine(Dir);

impl Engine {
    fn command(&self, line: &str) -> Command {
        let mut command = program();
        command
            .args(line.replace('@', &self.0.path("")).split_whitespace())
            .env("COFFERDAM_DATA", self.0.join("data"))
            .env("COFFERDAM_RUN", self.0.join("run"))
            .env("HOME", self.0.join("home"))
            .env_remove("XDG_RUNTIME_DIR");
        command
    }

    fn run(&self, line: &str) -> Run {
        finish(start(&mut self.command(line)))
    }
}

/// If it fails, a slip is met by silence, a riddle, a page of text, or a wrong exit code.
#[test]
fn each_slip_gets_a_line_that_helps() {
    let engine = Engine(Dir::new());
    engine.0.write("file", b"no archive");
    fs::create_dir(engine.0.join("dir")).unwrap();
    let tar = Command::new("tar")
        .arg("-cf")
        .arg(engine.0.join("image.tar"))
        .arg("-C")
        .arg(engine.0.join(""))
        .arg("dir")
        .status()
        .unwrap();
    assert!(tar.success());
    engine.run("import @/image.tar here:1").expect(0);
    engine
        .run("create --name made --network none here:1 true")
        .expect(0);
    let mut wrong = Vec::new();
    for (line, code, parts) in SLIPS {
        let run = engine.run(line);
        let lines = run.stderr.lines().count();
        let missing: Vec<_> = parts
            .iter()
            .filter(|part| !run.stderr.contains(**part))
            .collect();
        if run.code != Some(*code) || !missing.is_empty() || !(1..=2).contains(&lines) {
            wrong.push(format!(
                "{line}: {:?} {missing:?}\n{}",
                run.code, run.stderr
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
