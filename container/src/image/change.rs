//! `--change` of `import` and `commit`: Dockerfile instructions that an image's configuration takes.

use serde_json::{Value, json};

use crate::json;

/// An instruction that cannot be taken.
#[derive(Debug, thiserror::Error)]
#[error(
    "--change {instruction:?}: {why}; it takes CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME and WORKDIR"
)]
pub struct Error {
    instruction: String,
    why: &'static str,
}

/// Changes an image's configuration (the whole document) by an instruction.
pub fn apply(config: &mut Value, instruction: &str) -> Result<(), Error> {
    change(&mut config["config"], instruction).map_err(|why| Error {
        instruction: instruction.to_owned(),
        why,
    })
}

fn change(config: &mut Value, instruction: &str) -> Result<(), &'static str> {
    let (name, rest) = instruction
        .trim()
        .split_once(char::is_whitespace)
        .ok_or("it says nothing")?;
    let rest = rest.trim();
    match &name.to_ascii_uppercase()[..] {
        "CMD" => config["Cmd"] = command(rest)?,
        "ENTRYPOINT" => {
            config["Entrypoint"] = command(rest)?;
        }
        "ENV" => {
            for (key, value) in pairs(rest)? {
                let list = array(&mut config["Env"])?;
                let prefix = format!("{key}=");
                list.retain(|known| !known.as_str().is_some_and(|k| k.starts_with(&prefix)));
                list.push(format!("{prefix}{value}").into());
            }
        }
        "LABEL" => {
            for (key, value) in pairs(rest)? {
                config["Labels"][key] = value.into();
            }
        }
        "EXPOSE" => {
            for port in rest.split_whitespace() {
                let port = match port.contains('/') {
                    true => port.to_owned(),
                    false => format!("{port}/tcp"),
                };
                config["ExposedPorts"][port] = json!({});
            }
        }
        "VOLUME" => {
            let list = json::from_slice::<Vec<String>>(rest.as_bytes());
            let list =
                list.unwrap_or_else(|_| rest.split_whitespace().map(str::to_owned).collect());
            for path in list {
                config["Volumes"][path] = json!({});
            }
        }
        "STOPSIGNAL" => config["StopSignal"] = rest.into(),
        "USER" => config["User"] = rest.into(),
        "WORKDIR" => config["WorkingDir"] = rest.into(),
        _ => return Err("there is no such instruction here"),
    }
    Ok(())
}

/// `["program", "argument"]`, or a line for the shell.
fn command(text: &str) -> Result<Value, &'static str> {
    match text.starts_with('[') {
        true => json::from_slice::<Vec<String>>(text.as_bytes())
            .map(|list| json!(list))
            .map_err(|_| "its list is no JSON array of strings"),
        false => Ok(json!(["/bin/sh", "-c", text])),
    }
}

/// `KEY=VALUE...`, values quoted or not, or the old `KEY VALUE`.
fn pairs(text: &str) -> Result<Vec<(String, String)>, &'static str> {
    let first = text.split_whitespace().next().unwrap_or_default();
    if !first.contains('=') {
        let (key, value) = text
            .split_once(char::is_whitespace)
            .ok_or("a value is missing")?;
        return Ok(vec![(key.to_owned(), value.trim().to_owned())]);
    }
    let mut words = vec![String::new()];
    let mut quote = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        let word = words.last_mut().ok_or("it says nothing")?;
        match (letter, quote) {
            ('\\', _) => word.extend(letters.next()),
            (_, Some(open)) if letter == open => quote = None,
            ('"' | '\'', None) => quote = Some(letter),
            (_, None) if letter.is_whitespace() => words.push(String::new()),
            _ => word.push(letter),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed");
    }
    words
        .into_iter()
        .filter(|word| !word.is_empty())
        .map(|word| {
            let (key, value) = word.split_once('=').ok_or("a value is missing")?;
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect()
}

fn array(value: &mut Value) -> Result<&mut Vec<Value>, &'static str> {
    if value.is_null() {
        *value = json!([]);
    }
    value
        .as_array_mut()
        .ok_or("the image's own configuration is not as it should be")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, images made by `import` and `commit` start something else than was asked for.
    #[test]
    fn instructions_are_a_dockerfiles() {
        let mut config = json!({ "config": { "Env": ["A=1", "B=2"] } });
        for instruction in [
            "CMD [\"a\", \"b c\"]",
            "entrypoint run this",
            "ENV A=3 C=\"x y\"",
            "ENV D e f",
            "LABEL a.b='c d' e=f",
            "EXPOSE 80 53/udp",
            "VOLUME [\"/data\"]",
            "USER 1000:1000",
            "WORKDIR /srv",
        ] {
            apply(&mut config, instruction).unwrap();
        }
        let expected = json!({
            "Cmd": ["a", "b c"],
            "Entrypoint": ["/bin/sh", "-c", "run this"],
            "Env": ["B=2", "A=3", "C=x y", "D=e f"],
            "Labels": { "a.b": "c d", "e": "f" },
            "ExposedPorts": { "80/tcp": {}, "53/udp": {} },
            "Volumes": { "/data": {} },
            "User": "1000:1000",
            "WorkingDir": "/srv",
        });
        assert_eq!(config["config"], expected);
        for wrong in ["", "CMD", "RUN true", "CMD [a", "ENV A", "ENV A=\"b"] {
            assert!(apply(&mut config, wrong).is_err(), "{wrong}");
        }
    }
}
