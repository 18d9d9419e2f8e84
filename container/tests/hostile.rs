//! Archives, images and registries that mean harm.

#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

const PROGRAM: &str = env!("CARGO_BIN_EXE_cofferdam-container");

/// A store of a test's own.
struct Store(PathBuf);

impl Store {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("hostile-{}-{count}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn with(&self, mut command: Command) -> Command {
        command
            .env("COFFERDAM_DATA", &self.0)
            .env("COFFERDAM_RUN", self.0.join("run"))
            .env("HOME", &self.0)
            .env("XDG_RUNTIME_DIR", &self.0)
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("REGISTRY_AUTH_FILE");
        command
    }

    /// Runs a command on an archive, with no more than 64 MiB of memory. Gives its exit code and what it
    /// says of its failure.
    fn feed(
        &self,
        arguments: &[&str],
        archive: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
    ) -> (Option<i32>, String) {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "ulimit -d 65536 && exec \"$0\" \"$@\"", PROGRAM]);
        let mut child = self
            .with(command)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = io::BufWriter::with_capacity(1 << 20, child.stdin.take().unwrap());
        // It fails when nobody reads on.
        let writes = thread::spawn(move || drop(archive(&mut stdin)));
        let mut said = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        writes.join().unwrap();
        (child.wait().unwrap().code(), said)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes an entry of a tar.
fn entry(out: &mut dyn Write, kind: EntryType, name: &str, content: &[u8]) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_path(name)?;
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(content.len() as u64);
    header.set_cksum();
    out.write_all(header.as_bytes())?;
    out.write_all(content)?;
    out.write_all(&[0; 512][..(512 - content.len() % 512) % 512])
}

/// If it fails, whoever pulls or loads a hostile image has no memory left.
#[test]
fn archives_take_no_more_memory_than_they_are_worth() {
    let store = Store::new();
    let refused = |what: &str, (code, said): (Option<i32>, String)| {
        assert!(said.contains(what), "{what}: {said}");
        assert_eq!(code, Some(1), "{said}");
    };
    let headers = |out: &mut dyn Write| -> io::Result<()> {
        let record = |value: &[u8]| {
            let value = [b" comment=", value, b"\n"].concat();
            let length = value.len() + 7;
            [length.to_string().as_bytes(), &value].concat()
        };
        let record = record(&vec![b'x'; 1_000_000]);
        for _ in 0..300 {
            entry(out, EntryType::XHeader, "header", &record)?;
        }
        entry(out, EntryType::Regular, "file", b"")
    };
    let attributes = |out: &mut dyn Write| -> io::Result<()> {
        for header in 0..300 {
            let value = "v".repeat(60_000);
            let records = (0..15).map(|number| {
                let text = format!(" SCHILY.xattr.user.n{header:03}x{number:02}={value}\n");
                format!("{}{text}", text.len() + 5)
            });
            let records: String = records.collect();
            entry(out, EntryType::XHeader, "header", records.as_bytes())?;
        }
        entry(out, EntryType::Regular, "file", b"")
    };
    let paths = |out: &mut dyn Write| -> io::Result<()> {
        for number in 0..400 {
            let path = format!("{number}/{}", "long/".repeat(200_000));
            entry(out, EntryType::GNULongName, "name", path.as_bytes())?;
            entry(out, EntryType::Regular, "file", b"")?;
        }
        Ok(())
    };
    let links = |count: usize, length: usize| {
        move |out: &mut dyn Write| -> io::Result<()> {
            for number in 0..count {
                let target = format!("{number:0length$}");
                entry(out, EntryType::GNULongLink, "link", target.as_bytes())?;
                entry(
                    out,
                    EntryType::Symlink,
                    &format!("{}/{number}", number % 100),
                    b"",
                )?;
            }
            Ok(())
        }
    };
    for command in [&["import", "-"][..], &["load"]] {
        refused("extended headers", store.feed(command, headers));
        refused("extended headers", store.feed(command, attributes));
        refused("4096 bytes", store.feed(command, paths));
    }
    for links in [links(200_000, 8), links(20_000, 4000)] {
        refused("more than 24 MiB", store.feed(&["import", "-"], links));
    }
    refused(
        "more than 24 MiB",
        store.feed(&["load"], links(20_000, 4000)),
    );
}

/// If it fails, an image with many files cannot be used.
#[test]
fn honest_archives_are_not_refused_for_their_size() {
    let store = Store::new();
    let files = |out: &mut dyn Write| -> io::Result<()> {
        for number in 0..150_000 {
            let name = format!("modules/{}/file-{number}.js", number / 100);
            entry(out, EntryType::Regular, &name, &[b'x'; 2100])?;
        }
        Ok(())
    };
    let mut command = store.with(Command::new(PROGRAM));
    command.args(["import", "-"]).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut out = io::BufWriter::new(child.stdin.take().unwrap());
    files(&mut out).unwrap();
    drop(out);
    assert!(child.wait().unwrap().success());
}

/// An archive as `docker save` writes it, of an image with this configuration and an empty layer.
fn saved(config: Value) -> impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static {
    move |out| {
        let list = json!([{"Config": "config", "RepoTags": ["hostile:1"], "Layers": ["layer"]}]);
        let layer = Builder::new(Vec::new()).into_inner()?;
        for (name, content) in [
            ("config", config.to_string().into_bytes()),
            ("layer", layer),
            ("manifest.json", list.to_string().into_bytes()),
        ] {
            entry(out, EntryType::Regular, name, &content)?;
        }
        out.flush()
    }
}

/// If it fails, an image has one configuration for who reads it as a struct and another for who reads it
/// as JSON: `commit` ends in a panic, or `prune` removes layers in use.
#[test]
fn a_list_is_no_configuration() {
    let store = Store::new();
    let diff_id = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";
    let good = json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    let (code, said) = store.feed(&["load"], saved(good.clone()));
    assert_eq!((code, &said[..]), (Some(0), ""));
    let with = |key: &str, value: Value| {
        let mut config = good.clone();
        config[key] = value;
        config
    };
    for config in [
        with("rootfs", json!(["layers", [diff_id]])),
        with(
            "config",
            json!(["", null, [], null, ["sh"], null, "/", null, null]),
        ),
        with("history", json!([["", "", "", "", true]])),
        json!([null, null, "amd64", "linux", null, null, null, null,
            {"type": "layers", "diff_ids": [diff_id]}, null]),
    ] {
        let (code, said) = store.feed(&["load"], saved(config.clone()));
        assert_eq!(code, Some(1), "{config}");
        assert!(said.contains("invalid type: sequence"), "{config}: {said}");
    }
}

/// What a registry answers.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// A manifest without end.
    Manifest,
    /// A token without end.
    Token,
    /// An error without end.
    Error,
    /// An error in colour.
    Colour,
}

/// Starts a registry. Gives its address, and how many bytes its endless answers had.
fn registry(answer: Answer) -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let sent = Arc::new(AtomicU64::new(0));
    let (host, count) = (address.clone(), Arc::clone(&sent));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (host, count) = (host.clone(), Arc::clone(&count));
            thread::spawn(move || serve(stream.unwrap(), answer, &host, &count));
        }
    });
    (address, sent)
}

fn serve(mut stream: TcpStream, answer: Answer, host: &str, count: &AtomicU64) -> io::Result<()> {
    let mut request = Vec::new();
    let mut part = [0; 4096];
    while !request.ends_with(b"\r\n\r\n") {
        let read = stream.read(&mut part)?;
        request.extend(&part[..read]);
        // It is asked by TLS first, which it does not speak.
        if read == 0 || !request.starts_with(b"GET") {
            return Ok(());
        }
    }
    let head =
        |status: &str, more: &str| format!("HTTP/1.1 {status}\r\nConnection: close\r\n{more}\r\n");
    let asks = format!("WWW-Authenticate: Bearer realm=\"http://{host}/token\"\r\n");
    let is_first = request.starts_with(b"GET /v2/ ");
    let (head, body) = match answer {
        Answer::Token if is_first => (head("401 Unauthorized", &asks), ""),
        _ if is_first => (head("200 OK", "Content-Length: 0\r\n"), ""),
        Answer::Manifest | Answer::Token => (head("200 OK", ""), " "),
        Answer::Error => (head("500 Oops", ""), " "),
        Answer::Colour => (
            head("418 No", ""),
            "{\"errors\":[{\"code\":\"X\",\"message\":\"\\u001b[31mred\\u009b0m\"}]}",
        ),
    };
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    if body == " " {
        let part = vec![b' '; 64 << 10];
        while count.load(Ordering::Relaxed) < 256 << 20 {
            stream.write_all(&part)?;
            count.fetch_add(part.len() as u64, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// If it fails, a registry, or who is on the way to one, fills the memory of whoever pulls, or writes to
/// his terminal.
#[test]
fn what_a_registry_says_has_a_bound() {
    for (answer, says) in [
        (Answer::Manifest, "a manifest of more than 4194304 bytes"),
        (Answer::Token, "a token of more than 1048576 bytes"),
        (Answer::Error, "it answers 500"),
        (
            Answer::Colour,
            "it answers 418 I'm a teapot: \\x1b[31mred\\u{9b}0m",
        ),
    ] {
        let store = Store::new();
        let (address, sent) = registry(answer);
        let mut command = store.with(Command::new(PROGRAM));
        command.args(["pull", "-q", &format!("{address}/some/image")]);
        let out = command.output().unwrap();
        let said = String::from_utf8(out.stderr).unwrap();
        assert!(said.contains(says), "{answer:?}: {said}");
        assert_eq!(out.status.code(), Some(1), "{said}");
        // Some of it waits in sockets.
        let sent = sent.load(Ordering::Relaxed);
        assert!(sent < 64 << 20, "{answer:?}: {sent} bytes were taken");
    }
}

/// The first line of each request, and whom it says it is from.
type Requests = Arc<Mutex<Vec<(String, String)>>>;

/// Starts a server that answers by `answer` to a request's first line. Gives its address and, of each
/// request, the first line and who it says it is from.
fn server(answer: impl Fn(&str) -> String + Send + 'static) -> (String, Requests) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&asked);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                head.push(byte[0]);
                // TLS, which is tried first.
                if !head[0].is_ascii_uppercase() {
                    break;
                }
            }
            let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
            let field = |name: &str| {
                let mut lines = head.lines();
                let value = lines.find_map(|line| line.strip_prefix(name));
                value.unwrap_or_default().trim().to_owned()
            };
            let length = field("content-length:").parse().unwrap_or(0);
            let _ = io::copy(&mut (&stream).take(length), &mut io::sink());
            let first = head.lines().next().unwrap_or_default();
            if first.ends_with("http/1.1") {
                let who = field("authorization:");
                all.lock().unwrap().push((first.to_owned(), who));
                let _ = stream.write_all(answer(first).as_bytes());
            }
        }
    });
    (address, asked)
}

/// If it fails, images are not pushed to registries that want tokens, or whoever a registry points to
/// learns the user's password or token.
#[test]
fn credentials_go_to_the_registry_alone() {
    let reply = |status: &str, more: &str, body: &str| {
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{more}\r\n{body}"
        )
    };
    let (elsewhere, there) = server(move |_| reply("201 Created", "", ""));
    let (tokens, token_asked) =
        server(move |_| reply("200 OK", "", r#"{"token": "secret", "expires_in": 300}"#));
    let (address, asked) = server(move |first| match first {
        "get /v2/ http/1.1" => {
            let realm = format!("Bearer realm=\"http://{tokens}/token\",service=\"here\"");
            reply("401 No", &format!("WWW-Authenticate: {realm}\r\n"), "")
        }
        _ if first.starts_with("head ") => reply("404 No", "", ""),
        _ if first.starts_with("post ") => {
            let place = format!("Location: http://{elsewhere}/there?a=b\r\n");
            reply("202 Accepted", &place, "")
        }
        _ => reply("201 Created", "", ""),
    });
    let store = Store::new();
    // user:password
    let logins = json!({"auths": {&address: {"auth": "dXNlcjpwYXNzd29yZA=="}}});
    let logins_file = store.0.join("auth.json");
    fs::write(&logins_file, logins.to_string()).unwrap();
    let name = format!("{address}/some/image:v1");
    let layer = |out: &mut dyn Write| entry(out, EntryType::Regular, "file", b"content");
    assert_eq!(store.feed(&["import", "-", &name], layer).0, Some(0));
    let mut command = store.with(Command::new(PROGRAM));
    command.env("REGISTRY_AUTH_FILE", &logins_file);
    let out = command.args(["push", "-q", &name]).output().unwrap();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );

    let token_asked = token_asked.lock().unwrap();
    let (first, who) = token_asked.first().unwrap();
    assert!(
        first.contains("scope=repository%3asome%2fimage%3apull%2cpush&service=here"),
        "{first}"
    );
    assert_eq!(who, "basic dxnlcjpwyxnzd29yza==");
    assert_eq!(token_asked.len(), 1, "{token_asked:?}");
    let asked = asked.lock().unwrap();
    let (open, own): (Vec<_>, Vec<_>) = asked.iter().partition(|(_, who)| who.is_empty());
    assert!(
        open.iter().all(|(first, _)| first.starts_with("get /v2/ ")),
        "{open:?}"
    );
    assert!(own.iter().all(|(_, who)| who == "bearer secret"), "{own:?}");
    assert!(
        own.iter()
            .any(|(first, _)| first.starts_with("put /v2/some/image/manifests/v1 "))
    );
    let there = there.lock().unwrap();
    // The configuration and the layer.
    assert_eq!(there.len(), 2, "{there:?}");
    assert!(
        there.iter().all(|(first, who)| {
            first.starts_with("put /there?a=b&digest=sha256%3a") && who.is_empty()
        }),
        "{there:?}"
    );
}
