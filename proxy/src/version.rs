//! What this program calls itself.

/// The Envoy release whose behaviour is followed; control planes and kuma-dp compare it with what they support.
pub const ENVOY_VERSION: &str = "1.40.0";
/// Revision the program was built from; the build sets `SHIKA_GIT_SHA`.
pub const REVISION: &str = match option_env!("SHIKA_GIT_SHA") {
    Some(sha) => sha,
    None => "unknown",
};
/// Shika's own version.
pub const SHIKA_VERSION: &str = env!("CARGO_PKG_VERSION");
/// Envoy's build type.
pub const BUILD_TYPE: &str = if cfg!(debug_assertions) { "DEBUG" } else { "RELEASE" };
/// The TLS library, fifth part of the version. kuma-dp cuts the letters of "version:" from its end, so it ends in none of them.
pub const TLS_LIBRARY: &str = "AWS-LC";

/// Envoy's five-part version: revision, version, status, build type, TLS library.
///
/// kuma-dp reads the second part and needs exactly five.
pub fn build() -> String {
    format!("{REVISION}/{ENVOY_VERSION}/Clean/{BUILD_TYPE}/{TLS_LIBRARY}")
}

/// Output of `--version`: Envoy's line, then what it really is.
pub fn text(program: &str) -> String {
    format!(
        "\n{program}  version: {}\n\nShika {SHIKA_VERSION}: a native data plane with Envoy {ENVOY_VERSION}'s configuration and interfaces\n",
        build()
    )
}

/// The value of `server.version`: the first six digits of the revision as a number, as in Envoy.
pub fn number() -> u64 {
    REVISION.get(..6).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What kuma-dp does with the output (app/kuma-dp/pkg/dataplane/envoy/envoy.go).
    #[test]
    fn kuma_dp_parses_it() {
        let text = text("shika-proxy");
        let line = text.lines().find(|line| line.contains("version:")).expect("a version line");
        let rest = line.split_once("version:").expect("a colon").1.trim();
        let parts: Vec<_> = rest.trim_matches(|c| "version:".contains(c)).split('/').collect();
        assert_eq!(parts.len(), 5, "{rest}");
        assert_eq!(parts[1], ENVOY_VERSION);
        assert_eq!(parts[4], TLS_LIBRARY);
    }
}
