//! A mesh `demo`: `web` calls `backend` (HTTP) and `store` (TCP), which share a sidecar.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::process::{Answer, Process, envoy, exchange, free_port, get, program, until};

/// The permission that lets web call both services.
pub const PERMISSION: &str = "web-may-call";

/// Who stands beside a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Make {
    Shika,
    /// With the bootstrap that the control plane serves, as kuma-dp would start it.
    Envoy {
        /// The variant of ADS.
        delta: bool,
    },
}

/// `shika-cp` on ports and a store that outlive the process.
pub struct ControlPlane {
    process: Process,
    directory: PathBuf,
    pub api: u16,
    pub dp: u16,
    pub diagnostics: u16,
}

impl ControlPlane {
    pub fn start(directory: &Path) -> Self {
        let (api, dp, diagnostics) = (free_port(), free_port(), free_port());
        let process = Self::spawn(directory, api, dp, diagnostics);
        let mut this = Self { process, directory: directory.to_owned(), api, dp, diagnostics };
        this.ready();
        this
    }

    fn spawn(directory: &Path, api: u16, dp: u16, diagnostics: u16) -> Process {
        let mut command = Command::new(program("shika-cp"));
        command
            .arg("run")
            .arg("--work-dir")
            .arg(directory.join("cp"))
            .arg("--store-path")
            .arg(directory.join("store.db"));
        for (interface, port, number) in [
            ("--api-http-interface", "--api-http-port", api),
            ("--dp-server-interface", "--dp-server-port", dp),
            ("--diagnostics-interface", "--diagnostics-port", diagnostics),
        ] {
            command.args([interface, "127.0.0.1", port, &number.to_string()]);
        }
        // Nobody asks for monitoring assignments.
        command.arg("--mads-enabled=false");
        Process::start("control-plane", directory, &mut command)
    }

    fn ready(&mut self) {
        let diagnostics = self.diagnostics;
        self.process.until("an answer on /ready", || get(diagnostics, "/ready").filter(|(status, _)| *status == 200));
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.process.signal("KILL");
        self.process.wait();
    }

    /// Starts it again on the same store and ports.
    pub fn restart(&mut self) {
        self.process = Self::spawn(&self.directory, self.api, self.dp, self.diagnostics);
        self.ready();
    }

    pub fn ca(&self) -> PathBuf {
        self.directory.join("cp/dp-server-ca.pem")
    }

    pub fn log(&self) -> String {
        self.process.log()
    }

    /// A counter of `/metrics`, summed over what `labels` is part of.
    pub fn counter(&self, name: &str, labels: &str) -> u64 {
        let (_, text) = get(self.diagnostics, "/metrics").expect("/metrics");
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(name) && line.contains(labels)).collect();
        assert!(!lines.is_empty(), "no counter {name} with {labels:?}:\n{text}");
        lines.iter().map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// Runs shikactl with `input` as its standard input. Success, and what it printed.
    pub fn ctl(&self, arguments: &[&str], input: &str) -> (bool, String) {
        let config = self.directory.join("shikactl.yaml");
        if !config.exists() {
            let added = Command::new(program("shikactl"))
                .arg("--config-file")
                .arg(&config)
                .args(["config", "control-planes", "add", "--name", "test", "--address"])
                .arg(format!("http://127.0.0.1:{}", self.api))
                .output()
                .unwrap();
            assert!(added.status.success(), "{added:?}");
        }
        let file = self.directory.join("input.yaml");
        std::fs::write(&file, input).unwrap();
        let output = Command::new(program("shikactl"))
            .arg("--config-file")
            .arg(&config)
            .args(arguments)
            .stdin(std::fs::File::open(&file).unwrap())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    }

    /// Applies what has to be accepted without a word of warning.
    pub fn apply(&self, yaml: &str) {
        let (accepted, said) = self.ctl(&["apply", "-f", "-"], yaml);
        assert!(accepted && !said.contains("Warning"), "{said}");
    }

    /// A token for a Dataplane of a mesh.
    pub fn token(&self, mesh: &str, name: &str, valid_for: &str) -> String {
        let arguments = ["generate", "dataplane-token", "--mesh", mesh, "--name", name, "--valid-for", valid_for];
        let (made, said) = self.ctl(&arguments, "");
        assert!(made, "{said}");
        said.trim().to_owned()
    }

    /// What web may do with both services: `Allow` or `Deny`.
    pub fn permit(&self, action: &str) {
        self.apply(&format!(
            "type: MeshTrafficPermission\nmesh: demo\nname: {PERMISSION}\nspec:\n  targetRef: {{kind: Mesh}}\n  from:\n  \
             - targetRef: {{kind: MeshSubset, tags: {{kuma.io/service: web}}}}\n    default: {{action: {action}}}\n"
        ));
    }

    pub fn forbid(&self) {
        let (deleted, said) = self.ctl(&["delete", "meshtrafficpermission", PERMISSION, "--mesh", "demo"], "");
        assert!(deleted, "{said}");
    }
}

/// A sidecar and its admin interface.
pub struct Sidecar {
    pub process: Process,
    pub admin: u16,
}

impl Sidecar {
    /// A value of `/stats`; 0 for one that does not exist.
    pub fn stat(&self, name: &str) -> u64 {
        let (_, text) = get(self.admin, "/stats").expect("/stats");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.map_or(0, |value| value.trim().parse().unwrap())
    }

    /// Waits until the value is what is wanted.
    pub fn until_stat(&mut self, name: &str, wanted: impl Fn(u64) -> bool) {
        let admin = self.admin;
        let prefix = format!("{name}: ");
        self.process.until(name, || {
            let (_, text) = get(admin, "/stats")?;
            let value = text.lines().find_map(|line| line.strip_prefix(&prefix))?.trim().parse().ok()?;
            wanted(value).then_some(())
        });
    }
}

/// Everything, up and talking.
pub struct World {
    pub web: Sidecar,
    pub backend: Sidecar,
    pub cp: ControlPlane,
    _services: Vec<Process>,
    pub directory: tempfile::TempDir,
    /// Where web reaches backend and store.
    pub http: u16,
    pub tcp: u16,
}

impl World {
    /// Starts the mesh; `store` is an HTTP service behind a TCP inbound.
    pub fn start(web: Make, backend: Make) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let cp = ControlPlane::start(directory.path());
        cp.apply(
            "type: Mesh\nname: demo\nmtls: {enabledBackend: ca-1, backends: [{name: ca-1, type: builtin, mode: STRICT}]}\n",
        );
        cp.permit("Allow");
        let mut services = Vec::new();
        let mut serve = |name: &str| {
            let file = directory.path().join(format!("{name}.port"));
            let mut command = Command::new(program("shika-loadtest"));
            command.args(["echo", "--name", name, "--port-file"]).arg(&file);
            let mut process = Process::start(name, directory.path(), &mut command);
            let port = process.until("a port", || std::fs::read_to_string(&file).ok()?.trim().parse::<u16>().ok());
            services.push(process);
            port
        };
        let (backend_app, store_app, web_app) = (serve("backend"), serve("store"), serve("web"));
        let (http, tcp) = (free_port(), free_port());
        let (backend_in, store_in, web_in) = (free_port(), free_port(), free_port());
        let (backend_admin, web_admin) = (free_port(), free_port());
        let backend_dataplane = format!(
            "type: Dataplane\nmesh: demo\nname: backend-1\nnetworking:\n  address: 127.0.0.1\n  admin: {{port: {backend_admin}}}\n  \
             inbound:\n  - {{port: {backend_in}, servicePort: {backend_app}, tags: {{kuma.io/service: backend, kuma.io/protocol: http}}}}\n  \
             - {{port: {store_in}, servicePort: {store_app}, tags: {{kuma.io/service: store, kuma.io/protocol: tcp}}}}\n"
        );
        let web_dataplane = format!(
            "type: Dataplane\nmesh: demo\nname: web-1\nnetworking:\n  address: 127.0.0.1\n  admin: {{port: {web_admin}}}\n  \
             inbound:\n  - {{port: {web_in}, servicePort: {web_app}, tags: {{kuma.io/service: web, kuma.io/protocol: http}}}}\n  \
             outbound:\n  - {{port: {http}, tags: {{kuma.io/service: backend}}}}\n  - {{port: {tcp}, tags: {{kuma.io/service: store}}}}\n"
        );
        let backend = sidecar(&cp, directory.path(), backend, "backend-1", backend_admin, &backend_dataplane);
        let web = sidecar(&cp, directory.path(), web, "web-1", web_admin, &web_dataplane);
        let mut world = Self { web, backend, cp, _services: services, directory, http, tcp };
        world.until_allowed();
        world
    }

    /// A call of backend by web.
    pub fn call(&self) -> Answer {
        get(self.http, "/echo")
    }

    pub fn until_allowed(&mut self) {
        let (http, tcp) = (self.http, self.tcp);
        let is_from = |answer: Answer, service: &str| {
            answer.filter(|(status, body)| *status == 200 && body.contains(&format!("\"service\": \"{service}\"")))
        };
        self.web.process.until("an answer of backend", || is_from(get(http, "/echo"), "backend"));
        self.web.process.until("an answer of store", || is_from(get(tcp, "/echo"), "store"));
    }

    pub fn until_forbidden(&mut self) {
        let (http, tcp) = (self.http, self.tcp);
        let (_, body) =
            self.web.process.until("a refusal by backend", || get(http, "/echo").filter(|(status, _)| *status == 403));
        assert_eq!(body, "RBAC: access denied");
        // Refused where there are no replies: closed without a byte.
        until("a refusal by store", || {
            let answer = exchange(tcp, b"GET /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            answer.is_none_or(|answer| answer.is_empty()).then_some(())
        });
    }
}

fn sidecar(cp: &ControlPlane, directory: &Path, make: Make, name: &str, admin: u16, dataplane: &str) -> Sidecar {
    let token = cp.token("demo", name, "1h");
    let process = match make {
        Make::Shika => {
            let file = directory.join(format!("{name}.token"));
            std::fs::write(&file, token).unwrap();
            let mut command = join(cp, &file);
            let file = directory.join(format!("{name}.yaml"));
            std::fs::write(&file, dataplane).unwrap();
            Process::start(name, directory, command.arg("--dataplane-file").arg(&file))
        }
        Make::Envoy { delta } => {
            // Nobody brings it along for Envoy.
            cp.apply(dataplane);
            let features = if delta { json!(["feature-delta-grpc"]) } else { json!([]) };
            let request = json!({
                "mesh": "demo", "name": name, "dataplaneToken": token, "workdir": directory, "features": features,
                "version": {"envoy": {"version": "1.40.0"}},
            });
            let file = directory.join(format!("{name}.yaml"));
            std::fs::write(&file, bootstrap(cp, &request)).unwrap();
            let mut command = Command::new(envoy());
            command.args(["--use-dynamic-base-id", "--concurrency", "1", "-l", "warning", "-c"]).arg(&file);
            Process::start(name, directory, &mut command)
        }
    };
    let mut sidecar = Sidecar { process, admin };
    sidecar.process.until("LIVE", || get(admin, "/ready").filter(|(status, _)| *status == 200));
    sidecar
}

/// `shika-proxy run` with this token.
pub fn join(cp: &ControlPlane, token: &Path) -> Command {
    let mut command = Command::new(program("shika-proxy"));
    command
        .args(["run", "--concurrency", "1", "--readiness-port", "0"])
        .arg(format!("--cp-address=https://127.0.0.1:{}", cp.dp))
        .arg("--ca-cert-file")
        .arg(cp.ca())
        .arg("--dataplane-token-file")
        .arg(token);
    command
}

/// What the control plane answers to a bootstrap request, as YAML.
fn bootstrap(cp: &ControlPlane, request: &Value) -> Vec<u8> {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--fail-with-body", "--max-time", "60", "--cacert"])
        .arg(cp.ca())
        .args(["--header", "content-type: application/json", "--data", &request.to_string()])
        .arg(format!("https://127.0.0.1:{}/bootstrap", cp.dp))
        .output()
        .expect("curl is needed; get it with: scripts/setup.sh curl");
    assert!(output.status.success(), "{output:?}");
    output.stdout
}
