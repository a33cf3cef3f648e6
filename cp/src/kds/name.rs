//! Names of resources that come from another control plane (Kuma `pkg/kds/hash`).

/// The letters and digits of which Kubernetes makes random names: none that look alike, no vowels.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// Longest name, bytes.
const MAX_NAME: usize = 253;
/// A dash and sixteen letters.
const SUFFIX: usize = 17;

/// The name under which a resource is stored by another control plane: its own name and a hash of where it comes from. `parts` are
/// its zone and its Kubernetes namespace, as far as it has them.
pub fn hashed_name(mesh: &str, name: &str, parts: &[&str]) -> String {
    let mut hash = FNV_OFFSET;
    for part in [mesh, name].iter().chain(parts) {
        for byte in part.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
        }
    }
    // The sixteen hexadecimal digits, each then replaced by a letter that stands for its character code.
    let digits = format!("{hash:016x}");
    let suffix: String = digits
        .bytes()
        .filter_map(|digit| ALPHABET.get(usize::from(digit) % ALPHABET.len()))
        .map(|b| char::from(*b))
        .collect();
    let mut base = name;
    while base.len() > MAX_NAME - SUFFIX {
        let mut shorter = base.chars();
        shorter.next_back();
        base = shorter.as_str();
    }
    format!("{base}-{suffix}")
}

/// FNV-1a, 64 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>).
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

#[cfg(test)]
mod tests {
    use super::hashed_name;

    /// Trap 11. The names are those of Kuma's own test data.
    #[test]
    fn names_are_those_of_kuma() {
        for (mesh, name, parts, expected) in [
            ("mesh-1", "backend", &["zone-k8s", "ns-k8s"][..], "backend-z7f47x24v9f5x2b4"),
            ("mesh-1", "backend", &["zone-uni"], "backend-586b984b597z5874"),
            ("default", "redis-zone-1", &["zone-1"], "redis-zone-1-2v6wfvvcvbc9f55d"),
            ("default", "redis-zone-2", &["zone-2"], "redis-zone-2-ff29vc4685c6f594"),
            ("default", "default-timeout-global", &[], "default-timeout-global-54dbd4c66zwbcf9c"),
            ("default", "default-timeout-zone-1", &["zone-1"], "default-timeout-zone-1-c58w24w4vw27f454"),
        ] {
            assert_eq!(hashed_name(mesh, name, parts), expected);
        }
        let long = hashed_name("m", &"a".repeat(300), &[]);
        assert_eq!(long.len(), 253);
    }
}
