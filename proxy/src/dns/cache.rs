//! Answers of resolvers, kept as long as their TTLs say.
//!
//! Source: RFC 2181, section 8 (TTL), RFC 2308 (negative answers), RFC 8767 is not followed: nothing is served beyond its TTL.

use std::{
    collections::{HashMap, VecDeque},
    rc::Rc,
    time::Duration,
};

use hickory_server::proto::{
    op::ResponseCode,
    rr::{DNSClass, LowerName, RData, RecordType},
};
use tokio::time::Instant;

use super::message::Reply;

/// Answers kept at most; the oldest makes room.
const MAX_ENTRIES: usize = 4096;
/// Records of an answer that is still kept: what is larger is rare and would make the cache's size a matter of luck.
const MAX_RECORDS: usize = 64;
/// Longest life of an answer.
const MAX_TTL: u32 = 3600;
/// Longest life of "there is none". RFC 2308, section 5, allows three hours; a name that a deployment makes must not be missed for that long.
const MAX_NEGATIVE_TTL: u32 = 300;

/// Queries with equal keys have the same answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// QNAME.
    pub name: LowerName,
    /// QTYPE.
    pub kind: RecordType,
    /// QCLASS.
    pub class: DNSClass,
    /// RD, AD, CD, has OPT, DO.
    pub flags: [bool; 5],
}

/// An answer and when it came.
#[derive(Debug)]
pub struct Entry {
    /// What was answered.
    pub reply: Reply,
    /// When.
    pub received: Instant,
}

impl Entry {
    /// Whole seconds since then.
    pub fn age(&self) -> u32 {
        u32::try_from(self.received.elapsed().as_secs()).unwrap_or(u32::MAX)
    }
}

/// See the module.
#[derive(Default)]
pub struct Cache {
    entries: HashMap<Key, Kept>,
    /// Keys in the order in which they came, with the number of the entry that they stand for; that entry may have been replaced since.
    order: VecDeque<(Key, u64)>,
    last: u64,
}

struct Kept {
    entry: Rc<Entry>,
    until: Instant,
    number: u64,
}

impl Cache {
    /// The answer, if it is still good.
    pub fn find(&mut self, key: &Key) -> Option<Rc<Entry>> {
        let kept = self.entries.get(key)?;
        if Instant::now() < kept.until {
            return Some(kept.entry.clone());
        }
        self.entries.remove(key);
        None
    }

    /// Keeps an answer, if it may be kept.
    pub fn keep(&mut self, key: Key, entry: Rc<Entry>) {
        let Some(life) = life(&entry.reply) else { return };
        let until = entry.received + life;
        self.last += 1;
        self.order.push_back((key.clone(), self.last));
        self.entries.insert(key, Kept { entry, until, number: self.last });
        while self.entries.len() > MAX_ENTRIES || self.order.len() > 2 * MAX_ENTRIES {
            let Some((oldest, number)) = self.order.pop_front() else { return };
            if self.entries.get(&oldest).is_some_and(|kept| kept.number == number) {
                self.entries.remove(&oldest);
            }
        }
    }

    /// Forgets everything: the resolvers are others now.
    pub fn clear(&mut self) {
        *self = Cache::default();
    }
}

/// How long an answer is good; `None`: it is nobody else's.
fn life(reply: &Reply) -> Option<Duration> {
    if reply.answers.len() + reply.authorities.len() + reply.additionals.len() > MAX_RECORDS {
        return None;
    }
    // What comes with options (an extended error, a cookie) was meant for the one who asked.
    if reply.edns.as_ref().is_some_and(|edns| !edns.options().as_ref().is_empty()) {
        return None;
    }
    let seconds = match reply.code {
        ResponseCode::NoError if !reply.answers.is_empty() => {
            reply.answers.iter().map(|record| record.ttl).min()?.min(MAX_TTL)
        }
        // RFC 2308, section 5: without SOA a negative answer is not kept.
        ResponseCode::NoError | ResponseCode::NXDomain => {
            let soa = reply.authorities.iter().find_map(|record| match &record.data {
                RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
                _ => None,
            })?;
            reply.answers.iter().map(|record| record.ttl).chain([soa]).min()?.min(MAX_NEGATIVE_TTL)
        }
        _ => return None,
    };
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}

#[cfg(test)]
mod tests {
    use hickory_server::proto::rr::{Name, Record, rdata::SOA};

    use super::*;

    fn key(number: usize) -> Key {
        let name = Name::from_ascii(format!("n{number}.example.")).expect("a name");
        Key { name: name.into(), kind: RecordType::A, class: DNSClass::IN, flags: [false; 5] }
    }

    fn address(ttl: u32) -> Record {
        Record::from_rdata(Name::root(), ttl, RData::A(std::net::Ipv4Addr::new(192, 0, 2, 1).into()))
    }

    fn soa(ttl: u32, minimum: u32) -> Record {
        Record::from_rdata(Name::root(), ttl, RData::SOA(SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, minimum)))
    }

    #[test]
    fn how_long_answers_live() {
        let reply =
            |code, answers: Vec<Record>, authorities: Vec<Record>| Reply { answers, authorities, ..Reply::of(code) };
        let (ok, no_name) = (ResponseCode::NoError, ResponseCode::NXDomain);
        for (reply, seconds) in [
            (reply(ok, vec![address(60), address(20)], vec![]), Some(20)),
            (reply(ok, vec![address(100_000)], vec![]), Some(3600)),
            (reply(ok, vec![address(0)], vec![]), None),
            (reply(ok, vec![], vec![soa(900, 40)]), Some(40)),
            (reply(no_name, vec![], vec![soa(30, 900)]), Some(30)),
            (reply(no_name, vec![], vec![soa(9000, 9000)]), Some(300)),
            (reply(no_name, vec![], vec![]), None),
            (reply(ok, vec![], vec![]), None),
            (reply(ResponseCode::ServFail, vec![], vec![soa(30, 30)]), None),
            (reply(ok, vec![address(60); 65], vec![]), None),
        ] {
            assert_eq!(life(&reply), seconds.map(Duration::from_secs), "{reply:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn entries_age_run_out_and_make_room() {
        let mut cache = Cache::default();
        let entry = |ttl| {
            let reply = Reply { answers: vec![address(ttl)], ..Reply::of(ResponseCode::NoError) };
            Rc::new(Entry { reply, received: Instant::now() })
        };
        cache.keep(key(0), entry(10));
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(cache.find(&key(0)).map(|entry| entry.age()), Some(9));
        assert!(cache.find(&key(1)).is_none());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(cache.find(&key(0)).is_none() && cache.entries.is_empty());
        for number in 0..MAX_ENTRIES + 10 {
            cache.keep(key(number), entry(60));
        }
        assert_eq!(cache.entries.len(), MAX_ENTRIES);
        assert!(cache.find(&key(0)).is_none() && cache.find(&key(MAX_ENTRIES)).is_some());
        for _ in 0..3 * MAX_ENTRIES {
            cache.keep(key(5000), entry(60));
        }
        assert!(cache.order.len() <= 2 * MAX_ENTRIES && cache.find(&key(5000)).is_some());
    }
}
