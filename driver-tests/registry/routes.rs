//! The ways to a registry: mirrors, proxies, TLS.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

use crate::ground::{Ground, answer, good, image};
use crate::server::{Asked, Content, Reply, Server};
use crate::support::{arg, run};
use crate::taking::Taking;

#[test]
fn mirrors_are_asked_first() {
    let ground = Ground::new();
    let image = image("one");
    let content = Content::default().image("team/app", "v1", &image);
    let without = Server::start(|_| Reply::error(404, "NAME_UNKNOWN", "not mirrored"));
    // It loses a layer between manifest and blobs.
    let lost = format!("/v2/team/app/blobs/sha256:{}", crate::support::image::sha256(&image.layers[1].blob));
    let forgetful = Server::start(move |asked| match asked.path == lost {
        true => Reply::error(404, "BLOB_UNKNOWN", "gone"),
        false => content.answer(asked),
    });
    let registry = good(&image);
    let table = |mirrors: &[&Server]| {
        let urls: Vec<_> = mirrors.iter().map(|server| format!("\"{}\"", server.url())).collect();
        format!("[registry.\"{}\"]\nmirrors = [{}]\n", registry.address(), urls.join(", "))
    };
    let name = format!("{}/team/app:v1", registry.address());
    let config = ground.config("mirrors.toml", &table(&[&without, &forgetful]));
    let pulled = ground.ask(&["--config", arg(&config), "pull", "-q", &name]);
    assert_eq!(pulled.status, Some(0), "{}", pulled.stderr);
    let warned = |server: &Server, words: &str| {
        let begin = format!("registry {}: 404 Not Found: \"{words}\"", server.address());
        assert!(
            pulled.stderr.lines().any(|line| line.contains("WARN") && line.contains(&begin)),
            "{}",
            pulled.stderr
        );
    };
    warned(&without, "not mirrored");
    warned(&forgetful, "gone");
    assert_eq!(without.asked().len(), 1, "a mirror that hasn't the image isn't asked for its blobs");
    assert_eq!(registry.count("/manifests/"), 0, "the mirror had it");
    assert!(registry.count("/blobs/") >= 1);
    // What is pushed is for the registry alone; this one takes nothing.
    ground.ok(&["tag", &name, &format!("{}/team/own:v1", registry.address())]);
    let own = format!("{}/team/own:v1", registry.address());
    assert_eq!(ground.ask(&["--config", arg(&config), "push", &own]).status, Some(1));
    assert!(registry.count_of("HEAD", "/team/own/") >= 1);
    let heads = |server: &Server| server.asked().iter().filter(|asked| asked.method != "GET").count();
    assert_eq!((heads(&without), heads(&forgetful)), (0, 0));
    ground.assert_empty_again();
    let answer =
        ground.ask(&["--config", arg(&ground.config("bad.toml", "[registry.\"a b\"]\ninsecure = true")), "images"]);
    assert!(answer.stderr.contains("registry \"a b\": it isn't a registry's name"), "{}", answer.stderr);
}

/// A proxy that connects every name to `target`; the requests that it got.
struct ConnectProxy {
    address: String,
    asked: Arc<std::sync::Mutex<Vec<String>>>,
}

impl ConnectProxy {
    fn to(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("an address").to_string();
        let asked = Arc::<std::sync::Mutex<Vec<String>>>::default();
        let seen = Arc::clone(&asked);
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (target, seen) = (target.clone(), Arc::clone(&seen));
                std::thread::spawn(move || connect(stream, &target, &seen));
            }
        });
        Self { address, asked }
    }
}

fn connect(client: TcpStream, target: &str, seen: &std::sync::Mutex<Vec<String>>) -> io::Result<()> {
    let mut head = BufReader::new(client.try_clone()?);
    let mut request = String::new();
    head.read_line(&mut request)?;
    let mut line = String::from("x");
    while line.trim() != "" {
        line.clear();
        head.read_line(&mut line)?;
    }
    seen.lock().expect("lock").push(request.trim().to_string());
    (&client).write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
    let server = TcpStream::connect(target)?;
    let (mut back, mut to_client) = (server.try_clone()?, client.try_clone()?);
    let returning = std::thread::spawn(move || {
        let _ = io::copy(&mut back, &mut to_client);
        let _ = to_client.shutdown(std::net::Shutdown::Both);
    });
    let mut forth = server;
    let mut buffer = [0; 16384];
    while let Ok(n @ 1..) = head.read(&mut buffer) {
        forth.write_all(&buffer[..n])?;
    }
    let _ = forth.shutdown(std::net::Shutdown::Both);
    let _ = returning.join();
    Ok(())
}

/// With TLS: what the proxy sees is where to connect to.
#[test]
fn a_proxy_leads_to_what_it_knows() {
    let ground = Ground::new();
    let authority = Authority::new(ground.home().join("authority"));
    authority.issue("server", "127.0.0.1");
    let content = Content::default().image("team/app", "v1", &image("one"));
    let tls = Some(authority.server("server", false));
    let server = Server::start_with(tls, move |asked| content.answer(asked));
    let proxy = ConnectProxy::to(server.address());
    let url = format!("http://{}", proxy.address);
    let config = ground.config("insecure.toml", "[registry.\"registry.test:5000\"]\ninsecure = true");
    let name = "registry.test:5000/team/app:v1";
    let pull = |no_proxy: &str| {
        let mut command = ground.command(&["--config", arg(&config), "pull", "-q", name]);
        answer(command.env("HTTPS_PROXY", &url).env("http_proxy", &url).env("NO_PROXY", no_proxy))
    };
    let direct = pull("registry.test");
    assert_eq!(direct.status, Some(1));
    assert!(direct.stderr.contains("its name leads nowhere"), "{}", direct.stderr);
    assert!(proxy.asked.lock().expect("lock").is_empty());
    let pulled = pull("other.test");
    assert_eq!(pulled.status, Some(0), "{}", pulled.stderr);
    let asked = proxy.asked.lock().expect("lock").clone();
    assert!(asked.iter().all(|line| line == "CONNECT registry.test:5000 HTTP/1.1"), "{asked:?}");
    assert!(!asked.is_empty());
    ground.assert_empty_again();
}

/// Without TLS a proxy is asked for the whole URL, as curl and Docker do: as they are shipped, they connect to the ports of TLS alone.
#[test]
fn a_proxy_is_asked_for_plain_urls() {
    let ground = Ground::new();
    let image = image("one");
    let taking = Taking::with(Content::default().image("team/app", "v1", &image));
    let there = taking.clone();
    let broken = format!("/v2/team/app/blobs/sha256:{}", crate::support::image::sha256(&image.layers[0].blob));
    let proxy = Server::start(move |asked| match asked.path.strip_prefix("http://registry.test:5000") {
        Some(path) => {
            let reply = there.answer(&Asked { path: path.to_string(), ..asked.clone() });
            let is_whole = asked.method == "GET" && asked.header("range").is_empty();
            if path == broken && is_whole { reply.cut(100_000) } else { reply }
        }
        None => Reply::new(403, "text/html", "<html><title>not to that port</title></html>"),
    });
    let config = ground.config("insecure.toml", "[registry.\"registry.test:5000\"]\ninsecure = true");
    let name = "registry.test:5000/team/app:v1";
    let through = |proxy: &str, args: &[&str]| {
        let args = [&["--config", arg(&config)], args].concat();
        answer(ground.command(&args).env("HTTPS_PROXY", proxy).env("HTTP_PROXY", proxy))
    };
    let pull = |proxy: &str| through(proxy, &["pull", "-q", name]);
    let url = format!("http://me:pass%3Aword@{}", proxy.address());
    let pulled = pull(&url);
    assert_eq!(pulled.status, Some(0), "{}", pulled.stderr);
    let asked = proxy.asked();
    // TLS is tried first.
    assert_eq!(asked[0].path, "registry.test:5000");
    for asked in &asked[1..] {
        assert!(asked.path.starts_with("http://registry.test:5000/v2/team/app/"), "{asked:?}");
        assert_eq!(asked.header("host"), "registry.test:5000");
        assert_eq!(asked.header("proxy-authorization"), "Basic bWU6cGFzczp3b3Jk");
        assert_eq!(asked.header("authorization"), "");
    }
    // Manifest, config, three layers, one of them in two pieces.
    assert_eq!(asked.len(), 7, "{asked:?}");
    let pushed = through(&url, &["push", "-q", name, "registry.test:5000/other/copy:v2"]);
    assert_eq!(pushed.status, Some(0), "{}", pushed.stderr);
    assert_eq!(taking.get("other/copy/manifests/v2"), Some(image.manifest_bytes()));
    let asked = proxy.asked();
    let is_tls = |asked: &&Asked| asked.method == "CONNECT" && asked.path == "registry.test:5000";
    let (tried, plain): (Vec<_>, Vec<_>) = asked.iter().partition(is_tls);
    assert!(tried.len() < plain.len() && plain.iter().all(|asked| asked.path.starts_with("http://")), "{asked:?}");
    ground.assert_empty_again();

    let nowhere = pull("http://proxy.test:3128");
    assert!(nowhere.stderr.contains("its name leads nowhere"), "{}", nowhere.stderr);
    let unknown = pull("socks5://127.0.0.1:1");
    assert_eq!(unknown.status, Some(1), "{}", unknown.stderr);
    let said = "the proxy of the environment isn't a URL of http or https";
    assert!(unknown.stderr.contains(said) && !unknown.stderr.contains("panicked"), "{}", unknown.stderr);
    ground.assert_untouched("after proxies that are none");
}

/// An authority, and what it vouches for: `ca.crt`, `NAME.crt`, `NAME.key`.
struct Authority(PathBuf);

impl Authority {
    fn new(directory: PathBuf) -> Self {
        fs::create_dir(&directory).expect("mkdir");
        let authority = Self(directory);
        let (key, crt) = (authority.file("ca.key"), authority.file("ca.crt"));
        let args =
            ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
        run("openssl", &[&args[..], &["-subj", "/CN=authority", "-keyout", arg(&key), "-out", arg(&crt)]].concat());
        authority
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// For a server at that address, or a client.
    fn issue(&self, name: &str, address: &str) {
        let [key, csr, crt, ext] = ["key", "csr", "crt", "ext"].map(|kind| self.file(&format!("{name}.{kind}")));
        let subject = format!("/CN={name}");
        let args = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", &subject];
        run("openssl", &[&args[..], &["-keyout", arg(&key), "-out", arg(&csr)]].concat());
        let extensions = format!("subjectAltName=IP:{address}\nbasicConstraints=CA:FALSE\n");
        fs::write(&ext, extensions).expect("write");
        let (ca, ca_key) = (self.file("ca.crt"), self.file("ca.key"));
        let args = ["x509", "-req", "-days", "2", "-CAcreateserial", "-in", arg(&csr), "-out", arg(&crt)];
        run("openssl", &[&args[..], &["-CA", arg(&ca), "-CAkey", arg(&ca_key), "-extfile", arg(&ext)]].concat());
    }

    fn chain(&self, name: &str) -> Vec<CertificateDer<'static>> {
        let pem = CertificateDer::pem_file_iter(self.file(&format!("{name}.crt"))).expect("read");
        pem.collect::<Result<_, _>>().expect("PEM")
    }

    /// The side of the server `name`; with `clients`, only for those that this authority vouches for.
    fn server(&self, name: &str, clients: bool) -> Arc<ServerConfig> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().expect("versions");
        let builder = if clients {
            let mut roots = RootCertStore::empty();
            roots.add(self.chain("ca").remove(0)).expect("a root");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.expect("a verifier"))
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::from_pem_file(self.file(&format!("{name}.key"))).expect("a key");
        Arc::new(builder.with_single_cert(self.chain(name), key).expect("a pair"))
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().expect("a directory")).expect("mkdir");
    fs::copy(from, to).expect("copy");
}

#[test]
fn certificates_have_to_be_vouched_for() {
    let ground = Ground::new();
    let authority = Authority::new(ground.home().join("authority"));
    for (name, address) in [("server", "127.0.0.1"), ("client", "127.0.0.1"), ("other", "192.0.2.1")] {
        authority.issue(name, address);
    }
    let certs = ground.home().join("certs.d");
    let config = ground.config("certs.toml", &format!("registry_certs = [{:?}]", arg(&certs)));
    let start = |name: &str, clients: bool| {
        let content = Content::default().image("team/app", "v1", &image("one"));
        Server::start_with(Some(authority.server(name, clients)), move |asked| content.answer(asked))
    };
    let pull = |server: &Server| {
        ground.ask(&["--config", arg(&config), "pull", "-q", &format!("{}/team/app:v1", server.address())])
    };
    let server = start("server", false);
    let refused = pull(&server);
    assert_eq!((refused.status, server.asked().len()), (Some(1), 0), "{}", refused.stderr);
    assert!(refused.stderr.contains("its certificate isn't to be believed"), "{}", refused.stderr);
    assert!(refused.stderr.contains(&format!("/certs.d/{}/ca.crt", server.address())), "{}", refused.stderr);
    ground.assert_untouched("after a certificate of nobody");
    copy(&authority.file("ca.crt"), &certs.join(server.address()).join("ca.crt"));
    let pulled = pull(&server);
    assert_eq!(pulled.status, Some(0), "{}", pulled.stderr);
    ground.assert_empty_again();

    // One that wants to know who asks.
    let server = start("server", true);
    let known = certs.join(server.address());
    copy(&authority.file("ca.crt"), &known.join("ca.crt"));
    let refused = pull(&server);
    assert_eq!((refused.status, server.asked().len()), (Some(1), 0), "{}", refused.stderr);
    copy(&authority.file("client.crt"), &known.join("client.cert"));
    let refused = pull(&server);
    assert!(refused.stderr.contains("client.key beside it"), "{}", refused.stderr);
    copy(&authority.file("server.key"), &known.join("client.key"));
    let refused = pull(&server);
    assert!(refused.stderr.contains("client.key: not of this certificate"), "{}", refused.stderr);
    copy(&authority.file("client.key"), &known.join("client.key"));
    let pulled = pull(&server);
    assert_eq!(pulled.status, Some(0), "{}", pulled.stderr);
    ground.assert_empty_again();

    // One that is vouched for as somebody else: no file would help.
    let server = start("other", false);
    copy(&authority.file("ca.crt"), &certs.join(server.address()).join("ca.crt"));
    let refused = pull(&server);
    assert_eq!((refused.status, server.asked().len()), (Some(1), 0), "{}", refused.stderr);
    assert!(refused.stderr.contains("certificate not valid for name \"127.0.0.1\""), "{}", refused.stderr);
    assert!(!refused.stderr.contains("hint:"), "{}", refused.stderr);

    // One that nobody vouches for, and that the administrator takes all the same.
    let server = start("server", false);
    let config = ground.config("any.toml", &format!("[registry.\"{}\"]\ninsecure = true", server.address()));
    ground.ok(&["--config", arg(&config), "pull", "-q", &format!("{}/team/app:v1", server.address())]);
    ground.assert_empty_again();
}

/// From TLS the way may lead elsewhere, but not into the open.
#[test]
fn tls_is_not_left_for_plain_http() {
    let ground = Ground::new();
    let authority = Authority::new(ground.home().join("authority"));
    authority.issue("server", "127.0.0.1");
    let certs = ground.home().join("certs.d");
    let server =
        Server::start_with(Some(authority.server("server", false)), |_| Reply::redirect("http://192.0.2.1/x"));
    copy(&authority.file("ca.crt"), &certs.join(server.address()).join("ca.crt"));
    let config = ground.config("certs.toml", &format!("registry_certs = [{:?}]", arg(&certs)));
    let refused = ground.ask(&["--config", arg(&config), "pull", "-q", &format!("{}/a", server.address())]);
    assert!(refused.stderr.contains("it redirects from TLS to plain HTTP at 192.0.2.1"), "{}", refused.stderr);
    ground.assert_untouched("after a redirect");
    // Nor with what is pushed.
    let server = Server::start_with(Some(authority.server("server", false)), |asked| match asked.method.as_str() {
        "POST" => Reply::new(202, "text/plain", "").with("Location", "http://192.0.2.1/upload"),
        _ => Reply::new(404, "text/plain", ""),
    });
    copy(&authority.file("ca.crt"), &certs.join(server.address()).join("ca.crt"));
    let image = image("one");
    ground.world.load(&image);
    let to = format!("{}/a", server.address());
    let refused = ground.ask(&["--config", arg(&config), "push", &image.id(), &to]);
    let why = "it would have the blob go from TLS to plain HTTP at 192.0.2.1";
    assert!(refused.status == Some(1) && refused.stderr.contains(why), "{}", refused.stderr);
    assert!(refused.stderr.contains("hint: behind a proxy"), "{}", refused.stderr);
    ground.assert_empty_again();
}
