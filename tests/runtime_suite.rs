//! The script that judges our OCI runtime by a suite, with suites and runtimes that only pretend.
// The helpers of a test fail like the test.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/runtime-suite");

/// As contest prints its results. With the runtime called `bad` a test fails, one fails unless it is alone, a
/// group panics, and one hangs the first time. With none does the last group come to an end.
const CONTEST: &str = r##"#!/bin/sh
[ "$1" = list ] && { echo lifecycle; echo network; echo slow; echo endless; exit; }
[ "$1 $2 $4 $6" = "run --runtime --runtimetest -t" ] && [ -x "$5" ] && [ -f bundle.tar.gz ] || exit 9
[ "$RUNTIME_KIND" = runc ] || exit 9
runtime=${3##*/}
# It takes a blank for the end of a name.
group=${7%% *} test=
case $group in *::*) test=${group#*::} group=${group%%::*} ;; esac
tell() { [ -z "$test" ] || [ "$test" = "$1" ] && echo "1 / 3 : $1 : $2"; }
echo "# Start group $group"
case $group-$runtime in
lifecycle-*)
    tell create ok
    case $runtime in bad) tell start "not ok"; echo "	it did not" ;; *) tell start ok ;; esac
    case $runtime$test in bad) tell delete "not ok" ;; *) tell delete ok ;; esac
    # Tried again with its group, it passes.
    case $runtime in bad) [ -e twice ] && tell "a b" ok || { touch twice; tell "a b" "not ok"; } ;; *) tell "a b" ok ;; esac
    tell "cgroup v1" skipped ;;
network-bad)
    case $test in names) tell names ok ;; *) exit 101 ;; esac ;;
network-*) tell names ok; tell "device index" ok ;;
slow-*) [ -e "slow-$runtime" ] || { touch "slow-$runtime"; exec sleep 1000; }; tell one ok ;;
endless-*) exit 101 ;;
esac
echo "# End group $group"
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
        self.judge_with(suite, reference, expected, &[])
    }

    /// As [`Dir::judge`], with more arguments.
    fn judge_with(
        &self,
        suite: &Path,
        reference: &str,
        expected: &str,
        more: &[&str],
    ) -> (i32, String) {
        let list = self.0.join("expected");
        fs::write(&list, expected).unwrap();
        // They are never run; but what is not there is refused.
        for runtime in ["bad", reference] {
            self.program(&format!("bin/{runtime}"), "#!/bin/sh\n");
        }
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new(SCRIPT);
        command.env("PATH", format!("{}/bin:{path}", self.0.display()));
        command.args([
            "--timeout",
            "10",
            "--runtime",
            "bad",
            "--reference",
            reference,
        ]);
        command.args(more).arg("--expected");
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
        "DIFFERS   network/device_index: not ok",
        "UNJUDGED  endless/: it gives no result",
        "8 tests: 7 pass with the reference, 5 with ours; 3 differ",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    // They fail in their group alone, or the first time.
    for passed in ["delete", "a_b", "names", "slow"] {
        assert!(!said.contains(passed), "{passed}: {said}");
    }
    let all = "# why\ncontest:lifecycle/start it is slow\ncontest:network/* a VM has its own\n\
               contest:endless/* nobody knows\ncontest:lifecycle/cr* nothing\n\
               contest:gone/* it was there\nruntime-tools:other of another suite\n";
    let (code, said) = dir.judge(&suite, "good", all);
    assert_eq!(code, 0, "{said}");
    for line in ["it is slow", "stale     lifecycle/cr*", "dead      gone/*"] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(!said.contains("other"), "{said}");
    let only = ["--only", "life*"];
    let some = "contest:lifecycle/start it is slow\ncontest:gone/* is not asked for\n";
    let (code, said) = dir.judge_with(&suite, "good", some, &only);
    assert_eq!(code, 0, "{said}");
    assert!(
        !said.contains("network") && !said.contains("dead"),
        "{said}"
    );
    let lost = "contest:endless/* why\ncontest:network/* it panics with both\n";
    assert_eq!(dir.judge(&suite, "bad", lost).0, 0);
    for unusable in ["contest:lifecycle/start\n", "lifecycle/start whose is it\n"] {
        assert_eq!(dir.judge(&suite, "good", unusable).0, 2);
    }
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
    let reason = "runtime-tools:kill/* it lives on\n";
    assert_eq!(dir.judge(&suite, "good", reason).0, 0);
}
