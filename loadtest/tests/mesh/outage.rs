//! The control plane dies under load, and comes back.

use std::path::Path;
use std::process::Command;

use super::process::{Process, program, until};
use super::world::{Make, World};

/// Load that must not notice anything.
struct Load {
    process: Process,
    ready: std::path::PathBuf,
}

impl Load {
    fn start(name: &str, directory: &Path, target: u16, connections: &str, long_connections: &str) -> Self {
        let ready = directory.join(format!("{name}.ready"));
        let mut command = Command::new(program("shika-loadtest"));
        command
            .args(["hold", "--json", "--timeout", "30s", "--target", &format!("127.0.0.1:{target}")])
            .args(["--connections", connections, "--long-connections", long_connections, "--ready-file"])
            .arg(&ready);
        Self { process: Process::start(name, directory, &mut command), ready }
    }

    fn wait_until_up(&mut self) {
        let ready = self.ready.clone();
        self.process.until("all connections", || ready.exists().then_some(()));
    }

    /// Ends it; nothing may have been lost.
    fn finish(mut self) -> serde_json::Value {
        self.process.signal("TERM");
        let status = self.process.wait();
        let said = self.process.log();
        assert!(status.success(), "{said}");
        // Behind what it told while it ran.
        let tally = &said[said.find('{').unwrap_or_default()..];
        let tally: serde_json::Value = serde_json::from_str(tally).unwrap_or_else(|error| panic!("{error}: {said}"));
        assert_eq!(tally["lost_connections"], 0, "{tally}");
        tally
    }
}

#[test]
fn a_killed_control_plane_takes_nothing_with_it_and_resends_nothing() {
    let mut world = World::start(Make::Shika, Make::Shika);
    let mut requests = Load::start("requests", world.directory.path(), world.http, "20", "0");
    let mut long = Load::start("long", world.directory.path(), world.tcp, "0", "10");
    requests.wait_until_up();
    long.wait_until_up();

    world.cp.kill();
    for sidecar in [&mut world.web, &mut world.backend] {
        sidecar.until_stat("control_plane.connected_state", |state| state == 0);
    }
    // Traffic without a control plane: new connections too.
    for _ in 0..100 {
        assert_eq!(world.call().map(|(status, _)| status), Some(200));
    }
    world.until_allowed();
    let updates = ["cluster_manager.cds.update_success", "listener_manager.lds.update_success"];
    let before = |world: &World| updates.map(|name| [world.web.stat(name), world.backend.stat(name)]);
    let known = before(&world);

    world.cp.restart();
    for sidecar in [&mut world.web, &mut world.backend] {
        sidecar.until_stat("control_plane.connected_state", |state| state == 1);
    }
    let cp = &world.cp;
    until("both streams", || (cp.counter("xds_streams_active", "") == 2).then_some(()));
    assert_eq!(before(&world), known, "nothing has changed, so nothing is sent");

    // The first change after the outage is all that is sent: a permission concerns the two inbounds of backend's sidecar and the one of web's.
    cp.apply(
        "type: MeshTrafficPermission\nmesh: demo\nname: others-may-call\nspec:\n  targetRef: {kind: Mesh}\n  from:\n  \
         - targetRef: {kind: MeshSubset, tags: {kuma.io/service: other}}\n    default: {action: Allow}\n",
    );
    let listeners = "type.googleapis.com/envoy.config.listener.v3.Listener\"";
    until("both sidecars' answers", || (cp.counter("xds_acks_total", listeners) == 2).then_some(()));
    assert_eq!(cp.counter("xds_resources_sent_total", listeners), 3);
    for kind in ["cluster.v3.Cluster\"", "ClusterLoadAssignment\"", "RouteConfiguration\"", "Secret\""] {
        assert_eq!(cp.counter("xds_resources_sent_total", kind), 0, "{kind}");
    }
    assert_eq!(cp.counter("xds_resources_removed_total", ""), 0);
    assert_eq!(cp.counter("xds_nacks_total", ""), 0);
    assert_eq!(cp.counter("cert_generation ", ""), 0, "the sidecars' certificates are still good");
    for (name, [web, backend]) in updates.into_iter().zip(known) {
        let more = u64::from(name.contains("lds"));
        assert_eq!([world.web.stat(name), world.backend.stat(name)], [web + more, backend + more], "{name}");
    }

    let (requests, long) = (requests.finish(), long.finish());
    assert_eq!((&requests["connections"], &long["connections"]), (&20.into(), &10.into()));
    assert!(requests["requests"].as_u64().unwrap() >= 20 && long["messages"].as_u64().unwrap() >= 10);
}
