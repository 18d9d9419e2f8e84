//! Compose files whose services are VMs: `docker compose`, `docker-compose` and `podman-compose`, each with
//! the file of docs/compose.md.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Output, Stdio};

use crate::engines::{Engine, alone, containerd};
use crate::harness::{guest_file, host, wait_until};
use crate::runc::Runtime;

/// One of the tools, in a directory with a compose file.
struct Compose<'a> {
    engine: &'a Engine,
    /// The program and its options.
    program: &'static [&'static str],
    /// Where it finds its engine.
    variables: Vec<(&'static str, String)>,
    dir: String,
    /// Of the host's, that leads to `web`.
    port: u16,
    /// Between the words of containers' names.
    joint: char,
    /// What becomes of a program's 3.
    exit_code: i32,
}

impl Compose<'_> {
    fn run(&self, line: &str, script: Option<&str>) -> Output {
        let mut command = Command::new(self.program[0]);
        command.args(&self.program[1..]).args(["-p", "shop"]);
        command.args(line.split_whitespace());
        command.args(script.iter().flat_map(|script| ["sh", "-c", script]));
        let variables = self.variables.iter().cloned();
        command.current_dir(&self.dir).stdin(Stdio::null());
        command.envs(variables).output().unwrap()
    }

    #[track_caller]
    fn text(&self, line: &str, script: Option<&str>) -> String {
        let end = self.run(line, script);
        assert!(end.status.success(), "{line} {script:?}: {end:?}");
        String::from_utf8_lossy(&end.stdout).replace('\r', "")
    }

    /// What a service's web server has, from the host.
    fn page(&self) -> String {
        let port = self.port;
        host(&format!(
            "curl -s --noproxy '*' --max-time 5 http://127.0.0.1:{port}/ || :"
        ))
    }

    /// What people do with a compose file.
    #[track_caller]
    fn works(&self) {
        self.text("up -d", None);
        wait_until("the page", || self.page() == "row\n");
        let ps = self.text("ps", None);
        for service in ["db", "web"] {
            let name = format!("shop{0}{service}{0}1", self.joint);
            assert!(ps.contains(&name), "{name}: {ps}");
            let release = self.text(&format!("exec -T {service} uname -r"), None);
            assert!(release.contains("cofferdam"), "{service}: {release}");
        }
        let end = self.run("exec -T web", Some("exit 3"));
        assert_eq!(end.status.code(), Some(self.exit_code), "{end:?}");
        let logs = self.text("logs", None);
        assert!(logs.contains("ready"), "{logs}");
        // The volume outlives the containers, and not `-v`.
        self.text("down", None);
        self.text("up -d", None);
        wait_until("the page", || self.page() == "row\nrow\n");
        let volumes = || self.engine.text("volume ls -q");
        assert_eq!(volumes(), "shop_data");
        self.text("down -v", None);
        assert_eq!(volumes(), "");
        assert_eq!(self.engine.text("ps -aq"), "");
    }

    /// Docker's name server is asked in both ways, and its port is free for the container's own.
    #[track_caller]
    fn finds_names(&self) {
        self.text("up -d", None);
        let id = self.text("ps -q db", None);
        let format = "{{range.NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let address = self.engine.text(&format!("inspect -f {format} {id}"));
        // By a connection: the answer's last four bytes are the address.
        let ask = r"printf '\0\024\0\1\1\0\0\1\0\0\0\0\0\0\2db\0\0\1\0\1' | busybox nc 127.0.0.11 53 |
            busybox tail -c 4 | busybox od -An -tu1";
        let answer = self.text("exec -T web", Some(ask));
        let answer: Vec<&str> = answer.split_whitespace().collect();
        assert_eq!(answer.join("."), address);
        let serve = "httpd -p 53 -h /tmp && busybox nslookup web";
        let names = self.text("exec -T db", Some(serve));
        assert!(names.contains("Name:\tweb"), "{names}");
        self.text("down -v", None);
    }
}

/// A directory with the file of the documentation.
fn project(runtime: &Runtime, port: u16) -> String {
    let dir = runtime.path("shop");
    fs::create_dir(&dir).unwrap();
    let page = include_str!("../../docs/compose.md");
    let (_, rest) = page.split_once("```yaml\n").unwrap();
    let (file, _) = rest.split_once("```").unwrap();
    let file = file.replace("8080:80", &format!("{port}:80"));
    fs::write(format!("{dir}/compose.yaml"), file).unwrap();
    dir
}

/// If it fails, Docker's compose tools cannot start services that are VMs, these do not find each other by
/// name, or what they write to a volume is lost.
#[test]
fn docker_composes() {
    let runtime = Runtime::new("compose");
    let (containerd, socket) = containerd(&runtime);
    let engine = Engine::docker(runtime, &socket, containerd);
    engine.text("tag box busybox");
    let (socket, config) = (
        engine.runtime.path("docker.sock"),
        engine.runtime.path("docker-config"),
    );
    fs::create_dir_all(format!("{config}/cli-plugins")).unwrap();
    let plugin = guest_file("docker-compose");
    symlink(plugin, format!("{config}/cli-plugins/docker-compose")).unwrap();
    let port = 18083;
    let dir = project(&engine.runtime, port);
    let new = Compose {
        engine: &engine,
        program: &["docker", "compose"],
        variables: vec![
            ("DOCKER_HOST", format!("unix://{socket}")),
            ("DOCKER_CONFIG", config),
        ],
        dir: dir.clone(),
        port,
        joint: '-',
        exit_code: 3,
    };
    new.works();
    new.finds_names();
    let old = Compose {
        program: &["docker-compose"],
        variables: new.variables.clone(),
        joint: '_',
        dir,
        ..new
    };
    old.works();
    engine.runtime.nothing_is_left();
}

/// If it fails, the same is true of podman-compose.
#[test]
fn podman_composes() {
    // Docker has the host drop what containers of others say to each other, also when it is gone.
    let _alone = alone();
    host("iptables -P FORWARD ACCEPT");
    let engine = Engine::podman("compose-podman");
    engine.text("tag box busybox");
    let tools = engine.runtime.path("tools");
    fs::create_dir(&tools).unwrap();
    // It knows Podman by its name alone.
    let podman = format!("{tools}/podman");
    // Our runtime is its own by its configuration.
    let config = engine.runtime.path("containers.conf");
    let runtime = &engine.runtime.program;
    let text = format!("[engine]\nruntime = \"ours\"\n[engine.runtimes]\nours = [\"{runtime}\"]\n");
    fs::write(&config, text).unwrap();
    let words = engine
        .program
        .join(" ")
        .replacen("podman", "/usr/bin/podman", 1)
        .replace(&format!("--runtime {runtime}"), "");
    fs::write(
        &podman,
        format!("#!/bin/sh\nexec {} \"$@\"\n", words.trim()),
    )
    .unwrap();
    fs::set_permissions(&podman, fs::Permissions::from_mode(0o755)).unwrap();
    let port = 18084;
    let compose = Compose {
        engine: &engine,
        program: &["podman-compose"],
        variables: vec![
            (
                "PATH",
                format!("{tools}:{}", std::env::var("PATH").unwrap()),
            ),
            ("CONTAINERS_CONF", config),
        ],
        dir: project(&engine.runtime, port),
        port,
        joint: '_',
        // It forgets it.
        exit_code: 0,
    };
    compose.works();
    // It leaves that.
    engine.text("network rm shop_default");
    engine.runtime.nothing_is_left();
}
