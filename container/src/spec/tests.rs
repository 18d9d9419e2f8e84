use std::collections::HashSet;

use super::*;
use crate::options::{Mount as Wanted, Tmpfs};

fn image() -> ImageConfiguration {
    crate::json::from_slice(
        br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},
        "config":{"Entrypoint":["/entry"],"Cmd":["serve"],"Env":["PATH=/bin","LANG=C"],
        "WorkingDir":"/srv","User":"www","Labels":{"a":"image","b":"image"}}}"#,
    )
    .unwrap()
}

fn built(options: &Options) -> Spec {
    build(
        "0123456789abcdef",
        options,
        &image(),
        Path::new("rootfs"),
        &[],
    )
    .unwrap()
}

/// If it fails, images run other programs than their makers and users meant.
#[test]
fn command_and_entry_point_are_dockers() {
    let text = |s: &str| s.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    for (entrypoint, command_line, expected) in [
        (None, "", "/entry serve"),
        (None, "a b", "/entry a b"),
        (Some("/own"), "", "/own"),
        (Some("/own"), "a", "/own a"),
        (Some(""), "a", "a"),
    ] {
        let options = Options {
            entrypoint: entrypoint.map(str::to_owned),
            command: text(command_line),
            ..Options::default()
        };
        let args = command(&options, image().config().as_ref().unwrap()).unwrap();
        assert_eq!(args, text(expected));
    }
    assert!(command(&Options::default(), &Config::default()).is_err());
}

/// If it fails, a process has another environment, user or directory than Docker would give it.
#[test]
fn the_process_is_as_the_image_and_the_user_say() {
    let mut options = Options {
        env: vec!["LANG=de".into(), "A=1".into()],
        tty: true,
        label: vec!["b=own".into()],
        ..Options::default()
    };
    let spec = built(&options);
    let process = spec.process().as_ref().unwrap();
    let env = process.env().as_ref().unwrap();
    assert_eq!(
        env[..],
        [
            "PATH=/bin",
            "HOSTNAME=0123456789ab",
            "TERM=xterm",
            "LANG=de",
            "A=1"
        ]
    );
    assert_eq!(process.cwd(), Path::new("/srv"));
    assert_eq!(process.user().username().as_deref(), Some("www"));
    assert_eq!(spec.hostname().as_deref(), Some("0123456789ab"));
    let labels = spec.annotations().as_ref().unwrap();
    assert_eq!(
        (labels["a"].as_str(), labels["b"].as_str()),
        ("image", "own")
    );

    options.user = Some("1000:100".into());
    let spec = built(&options);
    let process = spec.process().as_ref().unwrap();
    assert_eq!((process.user().uid(), process.user().gid()), (1000, 100));
    let capabilities = process.capabilities().as_ref().unwrap();
    assert_eq!(capabilities.effective(), &Some(HashSet::new()));
    assert_eq!(capabilities.bounding().as_ref().unwrap().len(), 14);
    options.workdir = Some("relative".into());
    assert!(build("i", &options, &image(), Path::new("r"), &[]).is_err());
}

/// If it fails, a mount hides another, or is writable that should not be.
#[test]
fn mounts_are_in_order() {
    let mut options = Options::default();
    options
        .tmpfs
        .push("/data/tmp:size=1m".parse::<Tmpfs>().unwrap());
    options
        .mount
        .push(Wanted::from_mount("type=tmpfs,dst=/x,ro").unwrap());
    let binds = [Bind {
        source: "/run/cofferdam/storage/0".into(),
        target: "/data".into(),
        read_only: true,
    }];
    let spec = build("i", &options, &image(), Path::new("rootfs"), &binds).unwrap();
    let mounts = spec.mounts().as_ref().unwrap();
    let targets: Vec<_> = mounts
        .iter()
        .map(|m| m.destination().to_str().unwrap())
        .collect();
    assert_eq!(targets[targets.len() - 3..], ["/data", "/x", "/data/tmp"]);
    let options = |target: &str| {
        let mount = mounts.iter().find(|m| m.destination() == Path::new(target));
        mount.unwrap().options().clone().unwrap()
    };
    assert!(options("/data").contains(&"ro".into()));
    assert!(options("/x").contains(&"ro".into()));
    assert!(options("/data/tmp").contains(&"size=1m".into()));
    assert!(options("/dev/shm").contains(&"size=67108864".into()));
}

/// If it fails, limits do not hold or are others than asked for.
#[test]
fn limits_arrive() {
    let options = Options {
        memory: Some(Bytes(64 << 20)),
        cpus: Some(1.5),
        pids_limit: Some(10),
        ulimit: vec!["nofile=1:2".parse().unwrap()],
        sysctl: vec!["net.core.somaxconn=5".into()],
        ..Options::default()
    };
    let json = serde_json::to_value(built(&options)).unwrap();
    let resources = &json["linux"]["resources"];
    assert_eq!(resources["memory"]["limit"], 64 << 20);
    assert_eq!(resources["cpu"]["quota"], 150_000);
    assert_eq!(resources["pids"]["limit"], 10);
    assert_eq!(json["linux"]["sysctl"]["net.core.somaxconn"], "5");
    assert_eq!(json["process"]["rlimits"][0]["type"], "RLIMIT_NOFILE");
    assert!(!json["linux"]["maskedPaths"].as_array().unwrap().is_empty());
    let open = Options {
        privileged: true,
        ..Options::default()
    };
    let json = serde_json::to_value(built(&open)).unwrap();
    assert!(json["linux"]["maskedPaths"].is_null());
    assert_eq!(json["linux"]["resources"]["devices"][0]["allow"], true);
    assert_eq!(
        json["process"]["capabilities"]["effective"]
            .as_array()
            .unwrap()
            .len(),
        41
    );
}
