//! What the program prints about itself, and configurations.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use cofferdam::arch::template::CpuTemplate;
use serde_json::{Value, json};

use super::harness::{Dir, PROGRAM, finish, has_kvm, program, run, skip, start};

/// If it fails, help is where a pager does not see it, or has no example to begin with.
#[test]
fn help_is_on_standard_output_and_has_examples() {
    for args in [
        &["boot", "--help"][..],
        &["doctor", "--help"],
        &["help", "boot"],
    ] {
        let run = run(args).expect(0);
        assert!(run.stdout.contains("Examples:\n"), "{args:?}: {run:?}");
        assert_eq!(run.stderr, "");
    }
    let run = run(&["--help"]).expect(0);
    // The commands of all programs, first of all how to run something.
    for part in [
        "cofferdam run -it",
        "Containers:",
        "  exec ",
        "Images:",
        "  volume ",
        "  boot ",
        "  doctor ",
        "  man ",
    ] {
        assert!(run.stdout.contains(part), "no {part}: {run:?}");
    }
}

/// If it fails, nobody can say which version a bug is in.
#[test]
fn the_version_is_that_of_the_package() {
    let run = run(&["--version"]).expect(0);
    let wanted = format!("cofferdam {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!((run.stdout, run.stderr.as_str()), (wanted, ""));
}

/// If it fails, a shell stumbles over its completion script.
#[test]
fn completion_scripts_are_for_their_shells() {
    for (shell, part) in [
        ("bash", "complete -F _cofferdam"),
        ("zsh", "#compdef cofferdam"),
        ("fish", "complete -c cofferdam"),
    ] {
        let run = run(&["completions", shell]).expect(0);
        assert!(run.stdout.contains(part), "{shell}");
        for option in ["print-config", "entrypoint"] {
            assert!(run.stdout.contains(option), "{shell}");
        }
        parses(shell, &run.stdout);
    }
}

/// Gives `script` to a shell to read and not to run, if it is there.
fn parses(shell: &str, script: &str) {
    let child = Command::new(shell).arg("-n").stdin(Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        return skip(&format!("no {shell}"));
    };
    child
        .stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    assert!(
        child.wait().unwrap().success(),
        "{shell} cannot read its script"
    );
}

/// If it fails, `man` shows nothing, or not the options.
#[test]
fn the_manual_pages_are_pages() {
    for (args, title, part) in [
        (&["man"][..], ".TH cofferdam 1", "cofferdam\\-boot(1)"),
        (&["man", "boot"], ".TH cofferdam-boot 1", "\\-\\-kernel"),
        (&["man", "doctor"], ".TH cofferdam-doctor 1", "\\-\\-quiet"),
        (&["man", "run"], ".TH cofferdam-run 1", "\\-\\-publish"),
    ] {
        let page = run(args).expect(0).stdout;
        assert!(
            page.contains(title) && page.contains(part),
            "{args:?}: {page}"
        );
        let man = Command::new("man")
            .args(["-l", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut man) = man else {
            skip("no man");
            continue;
        };
        man.stdin
            .take()
            .unwrap()
            .write_all(page.as_bytes())
            .unwrap();
        let output = man.wait_with_output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
    }
}

/// If it fails, a pipeline that looks at the beginning only is told of a panic.
#[test]
fn a_reader_that_goes_away_is_no_panic() {
    for args in [
        &["man"][..],
        &["completions", "bash"],
        &["boot", "--print-config"],
    ] {
        let mut child = start(program().args(args));
        child.close_stdout();
        let said = finish(child).stderr;
        assert!(!said.contains("panicked"), "{args:?}: {said}");
    }
}

/// A copy of the program with nothing beside it.
fn alone(dir: &Dir) -> String {
    std::fs::copy(PROGRAM, dir.join("cofferdam")).unwrap();
    dir.path("cofferdam")
}

/// If it fails, a subcommand that is a program of its own gets other arguments than the user's, or
/// its end is lost.
#[test]
fn a_subcommand_may_be_a_program_beside_ours() {
    let dir = Dir::new();
    let program = alone(&dir);
    let script = dir.write(
        "cofferdam-fsd",
        b"#!/bin/sh\nprintf '<%s>' \"$@\"; exit 7\n",
    );
    std::fs::set_permissions(script, Permissions::from_mode(0o755)).unwrap();
    for args in [
        &["--share", "path=/a b", "--", "-x"][..],
        &["--help"],
        &["--version"],
    ] {
        let run = finish(start(Command::new(&program).arg("fsd").args(args))).expect(7);
        let words: Vec<_> = args.iter().map(|word| format!("<{word}>")).collect();
        assert_eq!(run.stdout, words.concat());
    }
}

/// If it fails, who installed only one of the programs is left to guess what is missing.
#[test]
fn a_missing_program_is_named_with_its_place() {
    let dir = Dir::new();
    let program = alone(&dir);
    let missing = dir.path("cofferdam-fsd");
    let parts = [missing.as_str(), program.as_str(), "make build"];
    finish(start(Command::new(&program).arg("fsd"))).refused(3, &parts);
    if has_kvm() {
        let args = ["boot", "--memory", "32M", "--fs", "tag=data,path=/tmp"];
        let mut boot = Command::new(&program);
        boot.args(args).arg("--kernel").arg(dir.join("off"));
        finish(start(&mut boot)).refused(3, &parts);
    }
}

fn print_config(args: &[&str]) -> Value {
    let args = [&["boot", "--print-config"], args].concat();
    serde_json::from_str(&run(&args).expect(0).stdout).unwrap()
}

const ALL: &str = "--kernel k --initrd i --cmdline quiet --rootfs r,ro,id=root \
    --disk path=a,cache=unsafe --disk path=b,id=x --pmem file=p,ro --net tap=t,mac=02:00:00:00:00:01,mtu=1400 \
    --net fd=7 --cpus 4 --memory 1G,prefault=on --balloon size=1M,deflate_on_oom,reporting,hinting=1,stats=1 --hugepages 2M --cpu-template c --console file=o \
    --protocol pvh --pages map --hardware cmdline --pit --no-rng --grace 3 --log-level debug \
    --log-file l";

/// If it fails, the file that `--print-config` gives is not the configuration it was made from.
#[test]
fn a_printed_configuration_gives_itself() {
    let dir = Dir::new();
    let args: Vec<&str> = ALL.split_whitespace().collect();
    let first = print_config(&args);
    assert_eq!(first["nets"][0]["mtu"], 1400);
    assert_eq!(first["cpus"]["pit"], true);
    let file = dir.write("vm.json", first.to_string().as_bytes());
    assert_eq!(print_config(&["--config", &file]), first);
}

/// If it fails, an option does not change what the file says, or changes more than that.
#[test]
fn options_win_over_the_file_and_lists_grow() {
    let dir = Dir::new();
    let text = json!({
        "boot": {"kernel": "file", "cmdline": "file"},
        "cpus": {"count": 2, "pit": true},
        "memory": {"size": 64},
        "console": "pty",
        "disks": [{"path": "a"}],
        "nets": [{"tap": "t0"}],
        "log": {"level": "info"},
    });
    let file = dir.write("vm.json", text.to_string().as_bytes());
    let args = "--kernel option --cpus 3 --disk path=b --net tap=t1 --console off";
    let mut all = vec!["--config", &file];
    all.extend(args.split_whitespace());
    let config = print_config(&all);
    assert_eq!(config["boot"]["kernel"], "option");
    assert_eq!(config["boot"]["cmdline"], "file");
    assert_eq!(config["cpus"], json!({"count": 3, "pit": true}));
    assert_eq!(config["memory"], json!({"size": "64M"}));
    assert_eq!(config["console"], "off");
    assert_eq!(config["disks"], json!([{"path": "a"}, {"path": "b"}]));
    assert_eq!(config["nets"], json!([{"tap": "t0"}, {"tap": "t1"}]));
    assert_eq!(config["log"], json!({"level": "info"}));
}

/// What docs/ says.
const CLI_PAGE: &str = include_str!("../../docs/cli.md");
const CONFIG_PAGE: &str = include_str!("../../docs/config.md");

/// If it fails, an option is not documented, or its documentation was forgotten when it went.
#[test]
fn the_page_has_every_option_and_no_other() {
    let help = run(&["boot", "--help"]).expect(0).stdout;
    let options = |text: &str| -> Vec<String> {
        let words = text.split(|c: char| !c.is_ascii_lowercase() && c != '-');
        let options = words.filter(|word| word.len() > 3 && word.starts_with("--"));
        let mut options: Vec<_> = options.map(str::to_owned).collect();
        options.sort();
        options.dedup();
        options
    };
    assert_eq!(options(CLI_PAGE), options(&help));
}

/// If it fails, a field is not documented, or an example is refused when somebody tries it.
#[test]
fn the_page_has_every_field_and_its_examples_hold() {
    let dir = Dir::new();
    let args: Vec<&str> = ALL.split_whitespace().collect();
    for (field, value) in print_config(&args).as_object().unwrap() {
        let inner = match value {
            Value::Array(items) => items[0].as_object(),
            value => value.as_object(),
        };
        let documented = |name: &str| CONFIG_PAGE.contains(&format!("`{name}`"));
        match inner {
            Some(inner) if !documented(field) => {
                for name in inner.keys() {
                    assert!(documented(&format!("{field}.{name}")), "{field}.{name}");
                }
            }
            Some(inner) => inner
                .keys()
                .for_each(|name| assert!(documented(name), "{name}")),
            None => assert!(documented(field), "{field}"),
        }
    }
    let blocks = CONFIG_PAGE.split("```json\n").skip(1);
    let mut blocks = blocks.map(|block| block.split("```").next().unwrap());
    let file = dir.write("vm.json", blocks.next().unwrap().as_bytes());
    assert_eq!(print_config(&["--config", &file])["cpus"]["count"], 2);
    serde_json::from_str::<CpuTemplate>(blocks.next().unwrap()).unwrap();
}
