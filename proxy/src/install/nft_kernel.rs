//! The rules told to the kernel's nf_tables over netlink: one batch, which the kernel commits whole or not at all.
//!
//! Source: Linux, include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h.

use std::io;

use super::{
    netlink::{Attributes, Failure, Message, NLM_F_APPEND, NLM_F_CREATE, Netlink},
    nft::{self, Hook, NftChain, TABLE},
    nft_expression::expressions,
    rules::{Family, Match, Rule, Ruleset, Verdict},
};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const NEWRULE: u16 = 6;

/// Why nothing was changed.
#[derive(Debug)]
pub enum Refusal {
    /// The kernel lacks something; the text names the module.
    Unsupported(String),
    /// Another try may succeed.
    Transient(String),
    /// It will not pass by itself.
    Failed(String),
}

/// What a message is about, for whoever reads that it failed.
struct About {
    what: String,
    /// Kernel modules without which it fails.
    modules: Vec<&'static str>,
}

#[derive(Default)]
struct Batch {
    messages: Vec<Message>,
    about: Vec<About>,
}

/// Puts the rules in place of whatever is in our tables.
///
/// # Errors
/// Nothing was changed.
pub fn install(rulesets: &[Ruleset], comments: bool) -> Result<(), Refusal> {
    let mut netlink = open()?;
    let mut batch = Batch::begin();
    for family in [Family::V4, Family::V6] {
        let wanted = rulesets.iter().any(|ruleset| ruleset.family == family);
        if wanted || has_table(&mut netlink, family, TABLE)? {
            // Whether the table is there or not: created, it can be deleted.
            batch.table(NEWTABLE, family);
            batch.table(DELTABLE, family);
        }
    }
    for ruleset in rulesets {
        batch.table(NEWTABLE, ruleset.family);
        let chains = nft::chains(ruleset);
        chains.iter().for_each(|chain| batch.chain(ruleset.family, chain));
        for chain in &chains {
            chain.rules.iter().for_each(|rule| batch.rule(ruleset.family, chain.name, rule, comments));
        }
    }
    batch.commit(&mut netlink)
}

/// Removes our tables; true where there was one.
///
/// # Errors
/// Nothing was changed.
pub fn uninstall() -> Result<bool, Refusal> {
    let mut netlink = open()?;
    let mut batch = Batch::begin();
    for family in [Family::V4, Family::V6] {
        if has_table(&mut netlink, family, TABLE)? {
            batch.table(DELTABLE, family);
        }
    }
    if batch.messages.len() == 1 { Ok(false) } else { batch.commit(&mut netlink).map(|()| true) }
}

/// Whether one of our tables is there.
///
/// # Errors
/// The kernel cannot be asked.
pub fn is_installed() -> Result<bool, Refusal> {
    let mut netlink = open()?;
    Ok(has_table(&mut netlink, Family::V4, TABLE)? || has_table(&mut netlink, Family::V6, TABLE)?)
}

/// Whether a chain exists that iptables-nft made, such as Docker's.
///
/// # Errors
/// The kernel cannot be asked.
pub fn has_chain(family: Family, table: &str, chain: &str) -> Result<bool, Refusal> {
    const NFTA_CHAIN_TABLE: u16 = 1;
    const NFTA_CHAIN_NAME: u16 = 3;
    let attributes = Attributes::default().text(NFTA_CHAIN_TABLE, table).text(NFTA_CHAIN_NAME, chain);
    exists(&mut open()?, GETCHAIN, family, attributes)
}

fn open() -> Result<Netlink, Refusal> {
    Netlink::open(libc::NETLINK_NETFILTER).map_err(|error| match error.raw_os_error() {
        Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => {
            Refusal::Unsupported(format!("the kernel has no nfnetlink (module nfnetlink): {error}"))
        }
        _ => Refusal::Failed(format!("a netlink socket to nf_tables: {error}")),
    })
}

fn has_table(netlink: &mut Netlink, family: Family, table: &str) -> Result<bool, Refusal> {
    const NFTA_TABLE_NAME: u16 = 1;
    exists(netlink, GETTABLE, family, Attributes::default().text(NFTA_TABLE_NAME, table))
}

fn exists(netlink: &mut Netlink, kind: u16, family: Family, attributes: Attributes) -> Result<bool, Refusal> {
    let message = Message { kind: SUBSYSTEM << 8 | kind, flags: 0, head: head(family), attributes };
    match netlink.talk(&[message], 0) {
        Ok(()) => Ok(true),
        Err(failure) => match failure.error.raw_os_error() {
            Some(libc::ENOENT | libc::EAFNOSUPPORT) => Ok(false),
            _ => Err(refusal(&[About { what: "asking for our table".into(), modules: vec!["nf_tables"] }], &failure)),
        },
    }
}

/// struct nfgenmsg: family, version, and an id that these messages leave 0.
fn head(family: Family) -> Vec<u8> {
    vec![family_number(family), 0, 0, 0]
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    }
}

impl Batch {
    fn begin() -> Batch {
        let mut batch = Batch::default();
        batch.frame(BATCH_BEGIN);
        batch
    }

    fn frame(&mut self, kind: u16) {
        let [high, low] = SUBSYSTEM.to_be_bytes();
        let head = vec![libc::AF_UNSPEC as u8, 0, high, low];
        self.messages.push(Message { kind, flags: 0, head, attributes: Attributes::default() });
        self.about.push(About { what: "the transaction".into(), modules: vec!["nf_tables"] });
    }

    fn push(&mut self, kind: u16, flags: u16, family: Family, attributes: Attributes, about: About) {
        self.messages.push(Message { kind: SUBSYSTEM << 8 | kind, flags, head: head(family), attributes });
        self.about.push(about);
    }

    fn table(&mut self, kind: u16, family: Family) {
        const NFTA_TABLE_NAME: u16 = 1;
        let about = About { what: format!("table {} {TABLE}", nft::keyword(family)), modules: vec!["nf_tables"] };
        let flags = if kind == NEWTABLE { NLM_F_CREATE } else { 0 };
        self.push(kind, flags, family, Attributes::default().text(NFTA_TABLE_NAME, TABLE), about);
    }

    fn chain(&mut self, family: Family, chain: &NftChain) {
        const NFTA_CHAIN_TABLE: u16 = 1;
        const NFTA_CHAIN_NAME: u16 = 3;
        const NFTA_CHAIN_HOOK: u16 = 4;
        const NFTA_CHAIN_POLICY: u16 = 5;
        const NFTA_CHAIN_TYPE: u16 = 7;
        const NFTA_HOOK_HOOKNUM: u16 = 1;
        const NFTA_HOOK_PRIORITY: u16 = 2;
        const PREROUTING: u32 = 0;
        const OUTPUT: u32 = 3;
        const ACCEPT: u32 = 1;
        let mut attributes = Attributes::default().text(NFTA_CHAIN_TABLE, TABLE).text(NFTA_CHAIN_NAME, chain.name);
        let mut modules = vec!["nf_tables"];
        if let Some(Hook { kind, arrival, priority }) = chain.hook {
            let hook = Attributes::default()
                .number(NFTA_HOOK_HOOKNUM, if arrival { PREROUTING } else { OUTPUT })
                .bytes(NFTA_HOOK_PRIORITY, &priority.to_be_bytes());
            attributes =
                attributes.nested(NFTA_CHAIN_HOOK, hook).number(NFTA_CHAIN_POLICY, ACCEPT).text(NFTA_CHAIN_TYPE, kind);
            if kind == "nat" {
                modules = vec!["nft_chain_nat", "nf_nat"];
            }
        }
        let about = About { what: format!("chain {} of table {} {TABLE}", chain.name, nft::keyword(family)), modules };
        self.push(NEWCHAIN, NLM_F_CREATE, family, attributes, about);
    }

    fn rule(&mut self, family: Family, chain: &str, rule: &Rule, comments: bool) {
        const NFTA_RULE_TABLE: u16 = 1;
        const NFTA_RULE_CHAIN: u16 = 2;
        const NFTA_RULE_EXPRESSIONS: u16 = 4;
        const NFTA_RULE_USERDATA: u16 = 7;
        let mut attributes = Attributes::default()
            .text(NFTA_RULE_TABLE, TABLE)
            .text(NFTA_RULE_CHAIN, chain)
            .nested(NFTA_RULE_EXPRESSIONS, expressions(rule));
        if comments && !rule.comment.is_empty() {
            // libnftnl, udata.h: type (0 is a comment), length with the terminator, text. nft shows up to 127 bytes.
            let text = rule.comment.as_bytes();
            let text = text.get(..127).unwrap_or(text);
            let userdata = [&[0, text.len() as u8 + 1], text, &[0]].concat();
            attributes = attributes.bytes(NFTA_RULE_USERDATA, &userdata);
        }
        let about = About {
            what: format!("rule `{}` in {} {TABLE} {chain}", nft::rule_text(rule, family, false), nft::keyword(family)),
            modules: modules(rule),
        };
        self.push(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, family, attributes, about);
    }

    fn commit(mut self, netlink: &mut Netlink) -> Result<(), Refusal> {
        let last = self.messages.len() - 1;
        self.frame(BATCH_END);
        netlink.talk(&self.messages, last).map_err(|failure| refusal(&self.about, &failure))
    }
}

/// Modules that a rule needs beyond nf_tables itself. nf_tables says "no such file" for an expression whose module it cannot load.
fn modules(rule: &Rule) -> Vec<&'static str> {
    let mut modules = Vec::new();
    if rule.matches.contains(&Match::Invalid) || matches!(rule.verdict, Verdict::Zone(_)) {
        modules.extend(["nft_ct", "nf_conntrack"]);
    }
    match rule.verdict {
        Verdict::Redirect(_) => modules.extend(["nft_redir", "nf_nat"]),
        Verdict::Log { .. } => modules.extend(["nft_log", "nf_log_syslog"]),
        Verdict::Zone(_) | Verdict::Return | Verdict::Jump(_) | Verdict::JumpTo(_) | Verdict::Drop => {}
    }
    if modules.is_empty() {
        modules.push("nf_tables");
    }
    modules
}

fn refusal(about: &[About], failure: &Failure) -> Refusal {
    let error = &failure.error;
    let about = failure.message.and_then(|index| about.get(index));
    let what = about.map_or("nf_tables", |about| &about.what);
    let modules = about.map_or_else(|| "nf_tables".into(), |about| about.modules.join(" or "));
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) => {
            Refusal::Unsupported(format!("{what}: the kernel lacks module {modules}: {error}"))
        }
        Some(libc::EPERM | libc::EACCES) => Refusal::Failed(format!(
            "{what}: {error}: run it as root, or give the process the capability NET_ADMIN in this network namespace"
        )),
        Some(libc::EMSGSIZE) => Refusal::Failed(format!(
            "{what}: the rules do not fit into one transaction: join ports into ranges and addresses into networks, or raise sysctl net.core.wmem_max"
        )),
        Some(libc::EBUSY | libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ENOMEM) => {
            Refusal::Transient(format!("{what}: {error}"))
        }
        _ if error.kind() == io::ErrorKind::WouldBlock => {
            Refusal::Transient(format!("{what}: no answer from the kernel"))
        }
        _ => Refusal::Failed(format!("{what}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]

    use super::*;

    #[test]
    fn failures_name_the_module_or_the_way_out() {
        let zone = Rule { matches: Vec::new(), verdict: Verdict::Zone(1), comment: String::new() };
        let redirect = Rule { matches: Vec::new(), verdict: Verdict::Redirect(15001), comment: String::new() };
        let mut batch = Batch::begin();
        batch.table(NEWTABLE, Family::V6);
        let hook = Some(Hook { kind: "nat", arrival: true, priority: -99 });
        batch.chain(Family::V4, &NftChain { name: "prerouting", hook, rules: Vec::new() });
        batch.rule(Family::V4, "raw_output", &zone, true);
        batch.rule(Family::V4, "outbound_redirect", &redirect, true);
        for (message, code, unsupported, needles) in [
            (Some(0), libc::EOPNOTSUPP, true, &["module nf_tables"][..]),
            (Some(1), libc::EAFNOSUPPORT, true, &["table ip6 shika", "module nf_tables"]),
            (Some(2), libc::ENOENT, true, &["chain prerouting", "nft_chain_nat"]),
            (Some(3), libc::ENOENT, true, &["`ct zone set 1`", "nft_ct"]),
            (Some(4), libc::ENOENT, true, &["`redirect to :15001`", "nft_redir"]),
            (Some(1), libc::EPERM, false, &["NET_ADMIN"]),
            (None, libc::EMSGSIZE, false, &["net.core.wmem_max"]),
            (Some(99), libc::EINVAL, false, &["nf_tables"]),
        ] {
            let failure = Failure { message, error: io::Error::from_raw_os_error(code) };
            let (found, text) = match refusal(&batch.about, &failure) {
                Refusal::Unsupported(text) => (true, text),
                Refusal::Failed(text) => (false, text),
                Refusal::Transient(text) => panic!("transient: {text}"),
            };
            assert_eq!(found, unsupported, "{text}");
            assert!(needles.iter().all(|needle| text.contains(needle)), "{text} lacks one of {needles:?}");
        }
        let failure = Failure { message: Some(1), error: io::Error::from_raw_os_error(libc::EBUSY) };
        assert!(matches!(refusal(&batch.about, &failure), Refusal::Transient(_)));
    }
}
