#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;

#[test]
fn what_an_earlier_installation_left() {
    let saved = "# Generated
*nat
:PREROUTING ACCEPT [0:0]
:KUMA_MESH_INBOUND - [0:0]
:KUMA_MESH_OLD - [0:0]
:OTHER - [0:0]
-A PREROUTING -p tcp -m comment --comment \"kuma/mesh/transparent/proxy/incoming TCP\" -j KUMA_MESH_INBOUND
-A PREROUTING -p tcp -j OTHER
-A KUMA_MESH_INBOUND -p tcp -m comment --comment \"kuma/mesh/transparent/proxy/x\" -j RETURN
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -m conntrack --ctstate INVALID -m comment --comment \"kuma/mesh/transparent/proxy/y\" -j DROP
COMMIT
";
    let left = ours(saved).unwrap();
    assert_eq!(
        removal(&left),
        "*mangle
-D PREROUTING -m conntrack --ctstate INVALID -m comment --comment \"kuma/mesh/transparent/proxy/y\" -j DROP
COMMIT
*nat
-D PREROUTING -p tcp -m comment --comment \"kuma/mesh/transparent/proxy/incoming TCP\" -j KUMA_MESH_INBOUND
-F KUMA_MESH_INBOUND
-F KUMA_MESH_OLD
-X KUMA_MESH_INBOUND
-X KUMA_MESH_OLD
COMMIT
"
    );
    assert!(ours("*nat\n:OTHER - [0:0]\nCOMMIT\n").unwrap().is_empty());
    let error = ours("*nat\n:KUMA_MESH_INBOUND - [0:0]\nCOMMIT\n").unwrap_err();
    assert!(error.contains("by hand"), "{error}");
}
