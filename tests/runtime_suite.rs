//! The script that judges our OCI runtime by a suite, with suites and runtimes that only pretend.
// The helpers of a test fail like the test.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/runtime-suite");

/// As contest prints its results; the runtime called `bad` fails one, panics in a group, and its
/// container's program and bundle are beside it.
const CONTEST: &str = r##"#!/bin/sh
[ "$1" = list ] && { echo lifecycle; echo network; exit; }
[ "$1 $2 $4 $6" = "run --runtime --runtimetest -t" ] && [ -x "$5" ] && [ -f bundle.tar.gz ] || exit 9
echo "# Start group $7"
runtime=${3##*/}
case $7-$runtime in
lifecycle-*)
    echo "1 / 3 : create : ok"
    case $runtime in bad) echo "2 / 3 : start : not ok"; echo "	it did not" ;; *) echo "2 / 3 : start : ok" ;; esac
    echo "3 / 3 : cgroup v1 : skipped" ;;
network-bad) exit 101 ;;
network-*) echo "1 / 1 : device names : ok" ;;
esac
echo "# End group $7"
"##;

/// As a program of runtime-tools does.
const TAP: &str = r##"#!/bin/sh
echo "TAP version 13"
echo "ok 1 - has a hostname"
if [ "$RUNTIME" = bad ]; then echo "not ok 2 - kills"; else echo "ok 2 - kills"; fi
echo "ok 3 # SKIP no cgroups"
echo "1..3"
"##;

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("cofferdam-suite-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn program(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Exit code and words of a judgement of the runtime `bad` by another, with expected differences.
    fn judge(&self, suite: &Path, reference: &str, expected: &str) -> (i32, String) {
        let list = self.0.join("expected");
        fs::write(&list, expected).unwrap();
        // They are never run; but what is not there is refused.
        for runtime in ["bad", reference] {
            self.program(&format!("bin/{runtime}"), "#!/bin/sh\n");
        }
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new(SCRIPT);
        command.env("PATH", format!("{}/bin:{path}", self.0.display()));
        command.args(["--runtime", "bad", "--reference", reference, "--expected"]);
        let output = command.arg(list).arg(suite).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        (output.status.code().unwrap(), said)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// If it fails, a test that passes in runc and fails in ours goes unnoticed, or a suite that was not
/// run at all.
#[test]
fn differences_need_a_reason() {
    let dir = Dir::new("contest");
    let suite = dir.program("contest", CONTEST);
    dir.program("runtimetest", "#!/bin/sh\n");
    fs::write(dir.0.join("bundle.tar.gz"), "").unwrap();
    let (code, said) = dir.judge(&suite, "good", "");
    assert_eq!(code, 1, "{said}");
    for line in [
        "DIFFERS   lifecycle/start: not ok",
        "DIFFERS   network/device_names: not run",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let all = "# why\nlifecycle/start it is slow\nnetwork/* a VM has its own\n\
               lifecycle/cr* nothing\nother of another suite\n";
    let (code, said) = dir.judge(&suite, "good", all);
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("it is slow") && said.contains("stale     lifecycle/cr*"),
        "{said}"
    );
    assert!(!said.contains("stale     other"), "{said}");
    assert_eq!(dir.judge(&suite, "bad", "").0, 0);
    assert_eq!(dir.judge(&suite, "good", "lifecycle/start\n").0, 2);
    assert_eq!(
        dir.judge(&dir.program("none", "#!/bin/sh\n"), "good", "").0,
        2
    );
    assert_eq!(dir.judge(Path::new("/nothing"), "good", "").0, 2);

    let dir = Dir::new("tap");
    dir.program("validation/kill/kill.t", TAP);
    let suite = dir.0.join("validation");
    let (code, said) = dir.judge(&suite, "good", "");
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("DIFFERS   kill/kill/kills: not ok"), "{said}");
    assert_eq!(dir.judge(&suite, "good", "kill/* it lives on\n").0, 0);
}
