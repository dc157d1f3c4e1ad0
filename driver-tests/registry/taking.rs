//! A good registry that takes what is pushed, for tests to let it misbehave.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::server::{Asked, Content, Reply, Server};
use crate::support::image::sha256;

/// What it has; its clones have the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Taking(Arc<Mutex<Inside>>);

#[derive(Debug, Default)]
struct Inside {
    content: Content,
    /// Uploads that were begun, and neither ended nor cancelled.
    uploads: BTreeSet<String>,
    begun: usize,
}

impl Taking {
    pub(crate) fn with(content: Content) -> Self {
        Self(Arc::new(Mutex::new(Inside { content, ..Inside::default() })))
    }

    pub(crate) fn start(&self) -> Server {
        let taking = self.clone();
        Server::start(move |asked| taking.answer(asked))
    }

    /// The bytes of a manifest, or of a blob: `team/app/manifests/v1`.
    pub(crate) fn get(&self, what: &str) -> Option<Vec<u8>> {
        let inside = self.0.lock().expect("lock");
        inside.content.0.get(&format!("/v2/{what}")).map(|(_, bytes)| bytes.clone())
    }

    pub(crate) fn media_type(&self, what: &str) -> Option<String> {
        let inside = self.0.lock().expect("lock");
        inside.content.0.get(&format!("/v2/{what}")).map(|(media_type, _)| media_type.clone())
    }

    pub(crate) fn manifest(&self, what: &str) -> Value {
        let bytes = self.get(what).unwrap_or_else(|| panic!("no {what}"));
        serde_json::from_slice(&bytes).expect("JSON")
    }

    /// Forget what is at paths with this in them.
    pub(crate) fn forget(&self, part: &str) {
        self.0.lock().expect("lock").content.0.retain(|path, _| !path.contains(part));
    }

    /// Names of manifests by tag.
    pub(crate) fn tags(&self) -> Vec<String> {
        let inside = self.0.lock().expect("lock");
        let tags = inside.content.0.keys().filter(|path| path.contains("/manifests/") && !path.contains("sha256:"));
        tags.cloned().collect()
    }

    /// How many uploads are under way.
    pub(crate) fn uploads(&self) -> usize {
        self.0.lock().expect("lock").uploads.len()
    }

    pub(crate) fn answer(&self, asked: &Asked) -> Reply {
        let mut inside = self.0.lock().expect("lock");
        let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
        let parameter = |name: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            let value = pairs.filter(|(known, _)| *known == name).map(|(_, value)| value).next();
            value.map(|value| value.replace("%3A", ":").replace("%2F", "/"))
        };
        let created = |path: &str, digest: &str| {
            Reply::new(201, "text/plain", "").with("Location", path).with("Docker-Content-Digest", digest)
        };
        match asked.method.as_str() {
            "HEAD" => match inside.content.0.get(path) {
                Some((media_type, bytes)) => {
                    let digest = format!("sha256:{}", sha256(bytes));
                    let reply = Reply::new(200, media_type, "").with("Docker-Content-Digest", &digest);
                    reply.with("Content-Length", &bytes.len().to_string())
                }
                None => Reply::new(404, "application/json", ""),
            },
            "POST" => {
                let repository = path.trim_end_matches("/blobs/uploads/");
                if let (Some(digest), Some(from)) = (parameter("mount"), parameter("from"))
                    && let Some(blob) = inside.content.0.get(&format!("/v2/{from}/blobs/{digest}")).cloned()
                {
                    let to = format!("{repository}/blobs/{digest}");
                    inside.content.0.insert(to.clone(), blob);
                    return created(&to, &digest);
                }
                inside.begun += 1;
                let upload = format!("{path}{}", inside.begun);
                inside.uploads.insert(upload.clone());
                // As docker-registry: with a query of its own.
                Reply::new(202, "text/plain", "").with("Location", &format!("{upload}?_state=a%3Db"))
            }
            "PUT" if path.contains("/manifests/") => {
                let repository = path.split("/manifests/").next().unwrap_or_default();
                let Ok(document) = serde_json::from_slice::<Value>(&asked.bytes) else {
                    return Reply::error(400, "MANIFEST_INVALID", "manifest invalid");
                };
                let blobs = document["layers"].as_array().into_iter().flatten().chain(document.get("config"));
                let manifests = document["manifests"].as_array().into_iter().flatten();
                let below = |kind: &'static str, named: &Value| {
                    format!("{repository}/{kind}/{}", named["digest"].as_str().unwrap_or_default())
                };
                let all = blobs.map(|blob| below("blobs", blob)).chain(manifests.map(|one| below("manifests", one)));
                for needed in all {
                    if !inside.content.0.contains_key(&needed) {
                        let why = format!("blob unknown to registry: {needed}");
                        return Reply::error(400, "MANIFEST_BLOB_UNKNOWN", &why);
                    }
                }
                let digest = format!("sha256:{}", sha256(&asked.bytes));
                let entry = (asked.header("content-type").to_string(), asked.bytes.to_vec());
                inside.content.0.insert(format!("{repository}/manifests/{digest}"), entry.clone());
                inside.content.0.insert(path.to_string(), entry);
                created(path, &digest)
            }
            "PUT" => {
                if !inside.uploads.remove(path) {
                    return Reply::error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry");
                }
                let digest = format!("sha256:{}", sha256(&asked.bytes));
                if parameter("digest").as_ref() != Some(&digest) {
                    return Reply::error(400, "DIGEST_INVALID", "provided digest did not match uploaded content");
                }
                let repository = path.split("/blobs/uploads/").next().unwrap_or_default();
                let to = format!("{repository}/blobs/{digest}");
                let entry = ("application/octet-stream".to_string(), asked.bytes.to_vec());
                inside.content.0.insert(to.clone(), entry);
                created(&to, &digest)
            }
            "DELETE" => match inside.uploads.remove(path) {
                true => Reply::new(204, "text/plain", ""),
                false => Reply::error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry"),
            },
            _ => inside.content.answer(asked),
        }
    }
}
