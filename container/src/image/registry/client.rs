//! What is said to a registry (OCI distribution specification). Whoever answers may be hostile: no
//! document is read further than it may be long, and credentials go to nobody else.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::Stream;
use http_auth::ChallengeParser;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RANGE, WWW_AUTHENTICATE};
use reqwest::{NoProxy, Proxy, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

use super::credentials::Credentials;
use crate::image::digest::Digest;
use crate::image::reference::Reference;
use crate::image::store::{self, oci};
use crate::json;

/// Bytes of a token at most, with what is said about it.
const MAX_TOKEN: u64 = 1 << 20;
/// So much of what a registry says of a failure is shown.
const MAX_REASON: u64 = 4 << 10;
/// How long a token is good if nothing is said of that.
const TOKEN_LIFE: u64 = 60;
/// A token is not used in its last seconds: requests take time.
const TOKEN_REST: u64 = 10;

const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

/// Why a registry does not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It cannot be reached, or does not speak HTTP.
    #[error("{}", plain(.0))]
    Http(reqwest::Error),
    /// It says no.
    #[error("it answers {status}{said}")]
    Status {
        /// How.
        status: StatusCode,
        /// In its own words, with a colon before them.
        said: String,
    },
    /// It talks on and on.
    #[error("it sends {what} of more than {limit} bytes")]
    TooLarge {
        /// What was asked for.
        what: &'static str,
        /// What is read at most.
        limit: u64,
    },
    /// A token that is none.
    #[error("it sends a token that cannot be read")]
    Token(#[source] serde_json::Error),
    /// A token without a token.
    #[error("it sends no token")]
    NoToken,
    /// Where tokens are to be had is no address.
    #[error("it sends us for a token to {0:?}, which is no address")]
    Realm(String),
    /// Credentials would go over the network in plain text.
    #[error("it sends us with the credentials to {0}, where anybody on the way could read them")]
    Plain(Url),
    /// An upload that was begun leads nowhere.
    #[error("it does not say where to upload to")]
    Location,
}

impl From<reqwest::Error> for ClientError {
    fn from(error: reqwest::Error) -> Self {
        Self::Http(error)
    }
}

/// What went wrong on the way, in a sentence: the last cause says it, and those before it repeat it.
fn plain(error: &reqwest::Error) -> String {
    let mut last: &dyn std::error::Error = error;
    let mut whole = error.to_string();
    while let Some(cause) = last.source() {
        last = cause;
        whole = format!("{whole}: {last}");
    }
    if whole.contains("no records found") {
        return "there is no host of that name".into();
    }
    if whole.contains("dns error") {
        return "no name server says what address that name has".into();
    }
    if error.is_timeout() {
        return "it does not answer in time".into();
    }
    let said = last.to_string();
    // An error's number is for programs.
    match said.split_once(" (os error") {
        Some((text, _)) => text.to_owned(),
        None => said,
    }
}

impl ClientError {
    /// What it answered, if it did.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(status.as_u16()),
            _ => None,
        }
    }

    /// Nobody answered, or not to the end.
    pub fn is_of_the_way(&self) -> bool {
        matches!(self, Self::Http(_))
    }
}

/// How a registry is reached.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    /// `https` or `http`.
    pub scheme: &'static str,
    /// Any certificate will do.
    pub insecure: bool,
}

/// A repository at a registry, and who we are there.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    /// Of the registry.
    base: Url,
    repository: String,
    credentials: Credentials,
    /// What may be done: `pull`, or `pull,push`.
    actions: &'static str,
    access: RefCell<Access>,
}

/// What requests are made with.
#[derive(Debug, Clone)]
enum Access {
    /// It was not asked yet.
    Unknown,
    /// Nothing.
    Open,
    /// The credentials themselves.
    Basic,
    /// A token, until then.
    Token(String, Instant),
}

/// A token and its life.
#[derive(Debug, Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Where tokens are to be had.
struct Challenge {
    realm: String,
    service: Option<String>,
}

impl Client {
    /// Connects with nobody yet.
    pub(super) fn new(
        name: &Reference,
        way: Way,
        credentials: Credentials,
        actions: &'static str,
    ) -> Result<Self, ClientError> {
        // Docker's hub has another name as a host.
        let host = match &name.registry[..] {
            "docker.io" => "index.docker.io",
            other => other,
        };
        let base = format!("{}://{host}/", way.scheme);
        let base = Url::parse(&base).map_err(|_| ClientError::Realm(base))?;
        let mut http = reqwest::Client::builder()
            .danger_accept_invalid_certs(way.insecure)
            .connect_timeout(Duration::from_secs(20))
            .read_timeout(Duration::from_secs(60))
            .user_agent(concat!("cofferdam/", env!("CARGO_PKG_VERSION")));
        let past = variable("no_proxy").and_then(|hosts| NoProxy::from_string(&hosts));
        if let Some(address) = variable("https_proxy") {
            http = http.proxy(Proxy::https(address)?.no_proxy(past.clone()));
        }
        if let Some(address) = variable("http_proxy") {
            http = http.proxy(Proxy::http(address)?.no_proxy(past));
        }
        Ok(Self {
            http: http.build()?,
            base,
            repository: name.repository.clone(),
            credentials,
            actions,
            access: RefCell::new(Access::Unknown),
        })
    }

    /// Whether the registry knows who we are; if it asks nobody, it knows everybody.
    pub(super) async fn check(&self) -> Result<(), ClientError> {
        let url = self.url_of("v2/")?;
        self.send(&url, self.http.get(url.clone())).await.map(drop)
    }

    /// A manifest or an index, of a tag or a digest.
    pub(super) async fn manifest(&self, reference: &str) -> Result<Vec<u8>, ClientError> {
        let url = self.url(&format!("manifests/{reference}"))?;
        let request = self.http.get(url.clone()).header(ACCEPT, MANIFESTS);
        let response = self.send(&url, request).await?;
        bounded(response, "a manifest", store::MAX_DOCUMENT).await
    }

    /// Whether it has some content.
    pub(super) async fn has(&self, digest: Digest) -> Result<bool, ClientError> {
        let url = self.url(&format!("blobs/{digest}"))?;
        match self.send(&url, self.http.head(url.clone())).await {
            Ok(_) => Ok(true),
            Err(error) if error.status() == Some(404) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Content from an offset on, and whether it does begin there and not at its beginning.
    pub(super) async fn blob(
        &self,
        digest: Digest,
        offset: u64,
    ) -> Result<(Response, bool), ClientError> {
        let url = self.url(&format!("blobs/{digest}"))?;
        let mut request = self.http.get(url.clone());
        if offset > 0 {
            request = request.header(RANGE, format!("bytes={offset}-"));
        }
        let response = self.send(&url, request).await?;
        let is_partial = response.status() == StatusCode::PARTIAL_CONTENT;
        Ok((response, is_partial))
    }

    /// Uploads content.
    pub(super) async fn upload<E>(
        &self,
        digest: Digest,
        size: u64,
        content: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    ) -> Result<(), ClientError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        let url = self.url("blobs/uploads/")?;
        let request = self.http.post(url.clone()).header(CONTENT_LENGTH, 0);
        let response = self.send(&url, request).await?;
        let place = response.headers().get(LOCATION);
        let place = place.and_then(|place| response.url().join(place.to_str().ok()?).ok());
        let mut place = place.ok_or(ClientError::Location)?;
        place
            .query_pairs_mut()
            .append_pair("digest", &digest.to_string());
        let request = self
            .http
            .put(place.clone())
            .header(CONTENT_LENGTH, size)
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(reqwest::Body::wrap_stream(content));
        self.send(&place, request).await.map(drop)
    }

    /// Gives a tag to a manifest, whose content is there.
    pub(super) async fn tag(
        &self,
        tag: &str,
        media_type: &str,
        manifest: Vec<u8>,
    ) -> Result<(), ClientError> {
        let url = self.url(&format!("manifests/{tag}"))?;
        let media_type = match media_type {
            "" => oci::MANIFEST,
            given => given,
        };
        let request = self.http.put(url.clone()).header(CONTENT_TYPE, media_type);
        self.send(&url, request.body(manifest)).await.map(drop)
    }

    fn url(&self, what: &str) -> Result<Url, ClientError> {
        self.url_of(&format!("v2/{}/{what}", self.repository))
    }

    fn url_of(&self, path: &str) -> Result<Url, ClientError> {
        let url = self.base.join(path);
        url.map_err(|_| ClientError::Realm(path.to_owned()))
    }

    /// Sends a request to `url`, as who we are if that is the registry's. What is no success is an error.
    async fn send(&self, url: &Url, request: RequestBuilder) -> Result<Response, ClientError> {
        let mut request = request;
        // An upload may lead elsewhere, where nobody is to hear who we are (CVE-2020-15157).
        if url.origin() == self.base.origin() {
            request = match (self.access().await?, &self.credentials) {
                (Access::Token(token, _), _) => request.bearer_auth(token),
                (Access::Basic, Credentials::Password(user, password)) => {
                    request.basic_auth(user, Some(password))
                }
                _ => request,
            };
        }
        success(request.send().await?).await
    }

    /// What requests are made with now.
    async fn access(&self) -> Result<Access, ClientError> {
        let known = self.access.borrow().clone();
        let is_good = match &known {
            Access::Unknown => false,
            Access::Token(_, end) => Instant::now() < *end,
            Access::Open | Access::Basic => true,
        };
        if is_good {
            return Ok(known);
        }
        let asked = self
            .http
            .get(self.base.join("v2/").unwrap_or(self.base.clone()));
        let answer = asked.send().await?;
        let asks = answer.headers().get(WWW_AUTHENTICATE);
        let access = match asks.and_then(|text| text.to_str().ok()).map(challenge) {
            None => Access::Open,
            Some(Some(challenge)) => self.token(&challenge).await?,
            Some(None) => Access::Basic,
        };
        *self.access.borrow_mut() = access.clone();
        Ok(access)
    }

    async fn token(&self, challenge: &Challenge) -> Result<Access, ClientError> {
        let realm = || ClientError::Realm(challenge.realm.clone());
        let mut url = Url::parse(&challenge.realm).map_err(|_| realm())?;
        // Without one nothing is asked for but whether it knows us.
        if !self.repository.is_empty() {
            let scope = format!("repository:{}:{}", self.repository, self.actions);
            url.query_pairs_mut().append_pair("scope", &scope);
        }
        if let Some(service) = &challenge.service {
            url.query_pairs_mut().append_pair("service", service);
        }
        let mut request = self.http.get(url.clone());
        if let Credentials::Password(user, password) = &self.credentials {
            if self.base.scheme() == "https" && url.scheme() != "https" {
                url.set_query(None);
                return Err(ClientError::Plain(url));
            }
            request = request.basic_auth(user, Some(password));
        }
        let response = success(request.send().await?).await?;
        let text = bounded(response, "a token", MAX_TOKEN).await?;
        let token: Token = json::from_slice(&text).map_err(ClientError::Token)?;
        let life = token.expires_in.unwrap_or(TOKEN_LIFE).max(TOKEN_LIFE);
        // A day is enough, and adds up.
        let life = Duration::from_secs(life.min(86_400) - TOKEN_REST);
        match token.token.or(token.access_token) {
            Some(token) => Ok(Access::Token(token, Instant::now() + life)),
            None => Err(ClientError::NoToken),
        }
    }
}

/// The challenge for a token; nothing if there is none, but one for something else.
fn challenge(text: &str) -> Option<Challenge> {
    let all = ChallengeParser::new(text).filter_map(Result::ok);
    let mut bearers = all.filter(|one| one.scheme.eq_ignore_ascii_case("Bearer"));
    let bearer = bearers.next()?;
    let parameter = |name: &str| {
        let mut all = bearer.params.iter();
        let found = all.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.to_unescaped())
    };
    Some(Challenge {
        realm: parameter("realm")?,
        service: parameter("service"),
    })
}

/// Reads an answer to its end, and no further than `limit`.
async fn bounded(
    mut response: Response,
    what: &'static str,
    limit: u64,
) -> Result<Vec<u8>, ClientError> {
    let mut bytes = Vec::new();
    while let Some(part) = response.chunk().await? {
        if (bytes.len() + part.len()) as u64 > limit {
            return Err(ClientError::TooLarge { what, limit });
        }
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}

/// An answer that is a yes; of one that is no, why.
async fn success(mut response: Response) -> Result<Response, ClientError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let mut bytes = Vec::new();
    // What was said until the connection broke is better than nothing.
    while let Ok(Some(part)) = response.chunk().await {
        bytes.extend_from_slice(&part);
        if bytes.len() as u64 > MAX_REASON {
            break;
        }
    }
    Err(ClientError::Status {
        status,
        said: reason(&bytes),
    })
}

/// Errors as registries have them.
#[derive(Deserialize)]
struct Errors {
    errors: Vec<One>,
}

#[derive(Deserialize)]
struct One {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// What a registry says of a failure, with a colon before it; nothing if that is not for people.
fn reason(text: &[u8]) -> String {
    let Ok(said) = json::from_slice::<Errors>(text) else {
        return String::new();
    };
    let one = |one: &One| match one.message.is_empty() {
        true => one.code.clone(),
        false => one.message.clone(),
    };
    let said: Vec<String> = said.errors.iter().map(one).collect();
    match said.concat().is_empty() {
        true => String::new(),
        false => format!(": {}", said.join(", ")),
    }
}

fn variable(name: &str) -> Option<String> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    set(name).or_else(|| set(&name.to_uppercase()))
}
