//! The real Envoy in the place of one sidecar.

use super::world::{Make, World};

/// Calls, their refusal once the permission is gone, and calls again.
fn lives_with(web: Make, backend: Make) {
    let mut world = World::start(web, backend);
    let (_, body) = world.call().unwrap();
    let reply: serde_json::Value = serde_json::from_str(&body).unwrap();
    let shown = reply["headers"]["x-forwarded-client-cert"].as_str().unwrap_or_default();
    assert!(shown.contains("By=spiffe://demo/backend") && shown.contains("URI=spiffe://demo/web"), "{reply}");

    world.cp.forbid();
    world.until_forbidden();
    let denied = |world: &World| {
        let (_, text) = super::process::get(world.backend.admin, "/stats?filter=rbac.denied").unwrap();
        text.lines().filter(|line| !line.ends_with(": 0")).count()
    };
    // A connection may break for another reason while listeners change.
    super::process::until("one counter of HTTP and one of TCP", || {
        world.until_forbidden();
        (denied(&world) == 2).then_some(())
    });
    let explained = |world: &World, why: &str| {
        let denial = |line: &str| line.contains("RBAC: denied spiffe://demo/web") && line.contains(why);
        super::process::until(why, || {
            (backend != Make::Shika || world.backend.process.log().lines().any(denial)).then_some(())
        });
    };
    explained(&world, "Deny: no MeshTrafficPermission of mesh demo selects this inbound");

    // Still refused, for another reason.
    world.cp.permit("Deny");
    let rule = "MeshTrafficPermission web-may-call spec.from[0]: Deny kuma.io/service=web";
    super::process::until(rule, || {
        world.until_forbidden();
        (backend != Make::Shika || world.backend.process.log().contains(rule)).then_some(())
    });
    explained(&world, rule);

    world.cp.permit("Allow");
    world.until_allowed();
    assert_eq!(world.cp.counter("xds_nacks_total", ""), 0, "{}", world.cp.log());
}

#[test]
fn envoy_calls_through_shika() {
    lives_with(Make::Envoy { delta: true }, Make::Shika);
}

#[test]
fn shika_calls_through_envoy() {
    lives_with(Make::Shika, Make::Envoy { delta: false });
}

#[test]
fn shika_calls_through_shika() {
    lives_with(Make::Shika, Make::Shika);
}
