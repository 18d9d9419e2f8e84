//! `login` and `logout`.

use std::io::{self, IsTerminal, Read};

use super::ask::{line, secret};
use super::container::{Outcome, print};
use crate::image::registry;

const RULES: &str = "\
What is kept lies where Podman looks for it, too: in containers/auth.json of the user's configuration, which
nobody else can read. It is not encrypted: use an access token in place of a password where the registry has
them.";

/// Tell a registry who you are
#[derive(Debug, clap::Args)]
#[command(after_help = RULES)]
pub(super) struct Login {
    /// Your name there; it is asked for if it is not given
    #[arg(short, long)]
    username: Option<String>,
    /// Your password; others on this host can see it while the command runs
    #[arg(short, long, conflicts_with = "password_stdin")]
    password: Option<String>,
    /// The password comes on standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// Take any certificate, or plain HTTP, as always from this machine
    #[arg(long)]
    insecure: bool,
    /// HOST[:PORT]
    #[arg(default_value = "docker.io")]
    registry: String,
}

/// Forget who you are to a registry
#[derive(Debug, clap::Args)]
pub(super) struct Logout {
    /// HOST[:PORT]
    #[arg(default_value = "docker.io")]
    registry: String,
}

/// What stands in the way.
#[derive(Debug, thiserror::Error)]
enum LoginError {
    #[error("there is no terminal to ask for {0} on; give it with {1}")]
    Terminal(&'static str, &'static str),
    #[error("cannot ask for {0}")]
    Ask(&'static str, #[source] io::Error),
    #[error("{0} is empty")]
    Empty(&'static str),
}

fn asked(
    what: &'static str,
    option: &'static str,
    ask: impl FnOnce() -> io::Result<String>,
) -> Result<String, LoginError> {
    if !io::stdin().is_terminal() {
        return Err(LoginError::Terminal(what, option));
    }
    ask().map_err(|source| LoginError::Ask(what, source))
}

/// `cofferdam login`.
pub(super) fn login(args: &Login) -> Outcome {
    let registry = registry::host(&args.registry);
    let user = match &args.username {
        Some(user) => user.clone(),
        None => asked("the user's name", "--username", || line("Username: "))?,
    };
    let password = match &args.password {
        Some(password) => password.clone(),
        None if args.password_stdin => {
            let mut text = String::new();
            io::stdin().lock().read_to_string(&mut text)?;
            text.trim_end_matches(['\n', '\r']).to_owned()
        }
        None => asked("the password", "--password-stdin", || secret("Password: "))?,
    };
    for (what, text) in [("the user's name", &user), ("the password", &password)] {
        if text.is_empty() {
            return Err(LoginError::Empty(what).into());
        }
    }
    let path = registry::login(registry, &user, &password, args.insecure)?;
    print(&format!("Login Succeeded: kept in {}\n", path.display()))?;
    Ok(0)
}

/// `cofferdam logout`.
pub(super) fn logout(args: &Logout) -> Outcome {
    let registry = registry::host(&args.registry);
    let files = registry::logout(registry)?;
    let text = match files.is_empty() {
        true => format!("Not logged in to {registry}\n"),
        false => files
            .iter()
            .map(|path| format!("Removed {registry} from {}\n", path.display()))
            .collect(),
    };
    print(&text)?;
    Ok(0)
}
