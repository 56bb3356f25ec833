use super::*;
use crate::fleet::lists;
use crate::fleet::report::Registration;
use crate::fleet::selector::{Labels, Selector};
use crate::fleet::statement::Statement;
use crate::policy::model::Place;
use std::path::Path;

/// Envelopes of the tests: `signer|kind|name|version|selector|expires|list|text`. A text `bad` is no policy, one that
/// begins with `asks` has a group of nodes. A list is the only prefix in it.
#[derive(Default)]
struct Lenient {
    newest: BTreeMap<String, (u64, Digest)>,
    untrusted: Vec<&'static str>,
}

/// A list of one prefix, as the store has it.
fn list(prefix: &str) -> lists::Encoded {
    lists::encode(prefix.as_bytes(), Path::new("list.txt")).expect("a list")
}

impl Judge for Lenient {
    fn verify(&self, envelope: &[u8], now: u64) -> Result<Verified, Rejection> {
        let verified = self.verify_kept(envelope)?;
        match verified.statement.expires {
            Some(expires) if now >= expires => Err(Rejection::new("expired", format!("ended at {expires}"))),
            _ => Ok(verified),
        }
    }

    fn verify_kept(&self, envelope: &[u8]) -> Result<Verified, Rejection> {
        let text = std::str::from_utf8(envelope).map_err(|_| Rejection::new("malformed", "not UTF-8"))?;
        let parts: Vec<&str> = text.split('|').collect();
        let [signer, kind, name, version, nodes, expires, prefix, text] = parts[..] else {
            return Err(Rejection::new("malformed", "not an envelope"));
        };
        if signer.is_empty() {
            return Err(Rejection::new("unsigned", "nobody signed it"));
        }
        if self.untrusted.contains(&signer) {
            return Err(Rejection::new(
                "unknown-signer",
                format!("{signer} is not trusted"),
            ));
        }
        let statement = Statement {
            kind: match kind {
                "delete" => Kind::Delete,
                "ban" => Kind::Ban,
                "unban" => Kind::Unban,
                _ => Kind::Policy,
            },
            name: name.into(),
            nodes: nodes.into(),
            version: version.parse().expect("a number"),
            issued: 0,
            expires: Some(expires.parse().expect("a number")),
            lists: match prefix {
                "" => BTreeMap::new(),
                prefix => BTreeMap::from([("list.txt".into(), list(prefix).root)]),
            },
            text: text.into(),
        };
        Ok(Verified {
            digest: Digest::of(&statement.to_bytes()),
            statement,
            signer: signer.into(),
            fingerprint: String::new(),
        })
    }

    fn is_here(&self, nodes: &str) -> bool {
        nodes == "*"
    }

    fn remember(&mut self, verified: &Verified) -> Result<bool, Rejection> {
        let Statement { name, version, .. } = &verified.statement;
        let (newest, known) = *self.newest.get(name).unwrap_or(&(0, verified.digest));
        if *version < newest {
            return Err(Rejection::new("older", format!("version {newest} was seen")));
        }
        if *version == newest && verified.digest != known {
            return Err(Rejection::new(
                "replayed",
                format!("another version {newest} was seen"),
            ));
        }
        let before = self.newest.insert(name.clone(), (*version, verified.digest));
        Ok(before == Some((*version, verified.digest)))
    }

    fn read(&self, document: &Document) -> Result<Vec<NodeGroup>, Rejection> {
        let group = NodeGroup {
            name: "all".into(),
            nodes: Selector::every(),
            within: None,
            place: Place::default(),
        };
        match &*document.verified.statement.text {
            "bad" => Err(Rejection::new("invalid", "no policy")),
            text if text.starts_with("asks") => Ok(vec![group]),
            _ => Ok(Vec::new()),
        }
    }

    fn member(&self, name: &str, value: &[u8]) -> Result<Member, Rejection> {
        let address = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        let address = address.ok_or(Rejection::new("malformed", "no address"))?;
        Ok(Member {
            registration: Registration {
                labels: Labels::new(name, []).expect("a name"),
                addresses: vec![address],
                version: String::new(),
                at: 0,
            },
            proven: false,
            sure: vec![address],
            stored: Bytes::copy_from_slice(value),
        })
    }
}

/// Over the disk.
fn read_back(keep: Keep) -> Kept {
    let documents = |documents: Vec<Arc<Document>>| {
        let kept = documents.into_iter().map(|document| KeptDocument {
            envelope: document.envelope.clone(),
            objects: document.objects.clone(),
        });
        kept.collect()
    };
    Kept {
        good: documents(keep.good),
        next: documents(keep.next),
        members: keep.members,
        heard: keep.heard,
    }
}

/// A node, its store and its owner.
struct Stage {
    node: Node,
    judge: Lenient,
    store: BTreeMap<String, Bytes>,
    now: Now,
    /// Texts that the owner cannot have together.
    clashes: Vec<(&'static str, &'static str)>,
    broken: bool,
}

const GRACE: u64 = 60;

impl Stage {
    fn new() -> Stage {
        let mut stage = Stage {
            node: Node::new(Duration::from_secs(GRACE)),
            judge: Lenient::default(),
            store: BTreeMap::new(),
            now: Now {
                wall: 1000,
                boot: Duration::from_secs(100),
            },
            clashes: Vec::new(),
            broken: false,
        };
        stage.relist();
        stage
    }

    fn policy(name: &str, version: u64, text: &str) -> String {
        format!("alice|policy|{name}|{version}|*|9000||{text}")
    }

    fn put(&mut self, name: &str, value: &str) {
        let (key, value) = (format!("policies/{name}"), Bytes::from(value.to_owned()));
        self.store.insert(key.clone(), value.clone());
        self.node.change(&key, Some(value), &self.judge, self.now);
        self.settle();
    }

    fn vanish(&mut self, key: &str) {
        self.store.remove(key);
        self.node.change(key, None, &self.judge, self.now);
        self.settle();
    }

    fn relist(&mut self) {
        let all = Listing {
            entries: self.store.clone().into_iter().collect(),
            with_nodes: true,
        };
        self.node.snapshot(all, &self.judge, self.now);
        self.settle();
    }

    /// Until there is nothing more to do.
    fn settle(&mut self) {
        for _ in 0..50 {
            self.node.look(&mut self.judge, self.now);
            let Some(set) = self.node.plan(self.now) else {
                return;
            };
            let has = |text: &str| set.parts.iter().any(|part| part.verified.statement.text == text);
            let clash = self.clashes.iter().find(|(a, b)| has(a) && has(b));
            match clash {
                _ if self.broken => self.node.refused(Fault::Machine, "no memory", self.now),
                Some((a, b)) => self
                    .node
                    .refused(Fault::Conflict, &format!("{a} and {b}"), self.now),
                None => self.node.taken(),
            }
        }
        panic!("never settles");
    }

    fn pass(&mut self, seconds: u64) {
        self.now.wall += seconds;
        self.now.boot += Duration::from_secs(seconds);
        self.settle();
    }

    /// Dies and comes back; `with` is what the owner can put in force.
    fn restart(&mut self, with: impl Fn(&Documents) -> bool) {
        let kept = read_back(self.node.keep());
        self.node = Node::new(Duration::from_secs(GRACE));
        self.node.restore(kept, &self.judge);
        let set = self.node.kept().into_iter().find(|set| with(set));
        self.node.begin(set);
        self.settle();
    }

    /// Texts in force, by name.
    fn texts(&self) -> Vec<&str> {
        self.node
            .applied()
            .parts
            .iter()
            .map(|part| &*part.verified.statement.text)
            .collect()
    }

    fn state(&self, name: &str) -> &'static str {
        let rows = self.node.rows();
        let row = rows.iter().find(|row| row.name == name);
        match row.map(|row| row.state.clone()) {
            None => "none",
            Some(State::Rejected(rejection)) => rejection.word,
            Some(state) => state.word(),
        }
    }

    fn told(&mut self) -> Vec<(String, &'static str)> {
        let told = self.node.refusals().into_iter();
        told.map(|refusal| (refusal.key, refusal.rejection.word))
            .collect()
    }
}

#[test]
fn documents_come_change_and_end_by_what_is_signed() {
    let mut stage = Stage::new();
    assert!(stage.texts().is_empty());
    stage.put("web", &Stage::policy("web", 1, "one"));
    stage.put("db", &Stage::policy("db", 1, "data"));
    assert_eq!(stage.texts(), ["data", "one"]);
    stage.put("web", &Stage::policy("web", 2, "two"));
    assert_eq!(stage.texts(), ["data", "two"]);
    stage.put("db", "alice|delete|db|2|*|9000||");
    assert_eq!((stage.texts(), stage.state("db")), (vec!["two"], "none"));
    // Now it is for other nodes.
    stage.put("web", "alice|policy|web|3|elsewhere|9000||three");
    assert!(stage.texts().is_empty());
    assert_eq!(stage.told(), []);
}

#[test]
fn what_is_refused_leaves_the_last_good_one_and_the_others() {
    let mut stage = Stage::new();
    stage.put("web", &Stage::policy("web", 3, "good"));
    for (bad, word) in [
        ("|policy|web|4|*|9000||open", "unsigned"),
        ("mallory|policy|web|4|*|9000||open", "unknown-signer"),
        ("garbage", "malformed"),
        ("", "malformed"),
        ("null", "malformed"),
        ("alice|policy|db|9|*|9000||of another name", "malformed"),
        ("alice|policy|web|4|*|900||old", "expired"),
        ("alice|policy|web|2|*|9000||before", "older"),
        ("alice|policy|web|3|*|9000||another three", "replayed"),
        ("alice|policy|web|5|*|9000||bad", "invalid"),
        ("alice|policy|web|4|*|9000||behind the bad one", "older"),
    ] {
        stage.judge.untrusted = vec!["mallory"];
        stage.put("web", bad);
        assert_eq!((stage.texts(), stage.state("web")), (vec!["good"], word), "{bad}");
        stage.relist();
        stage.pass(1);
        assert_eq!(
            stage.told(),
            [("policies/web".to_owned(), word)],
            "told once: {bad}"
        );
    }
    stage.put("db", &Stage::policy("db", 1, "data"));
    assert_eq!(stage.texts(), ["data", "good"]);
    stage.put("web", &Stage::policy("web", 6, "better"));
    assert_eq!(
        (stage.texts(), stage.state("web")),
        (vec!["data", "better"], "in-force")
    );
}

#[test]
fn an_empty_or_older_store_takes_nothing_away() {
    let mut stage = Stage::new();
    stage.put("web", &Stage::policy("web", 1, "one"));
    stage.put("db", &Stage::policy("db", 1, "data"));
    let backup = stage.store.clone();
    stage.put("web", &Stage::policy("web", 2, "two"));
    // One key is deleted by hand.
    stage.vanish("policies/db");
    assert_eq!(
        (stage.texts(), stage.state("db")),
        (vec!["data", "two"], "withheld")
    );
    // Restored from the backup: the same history up to then, another one from there.
    stage.store = backup;
    stage.node.replaced();
    stage.relist();
    assert_eq!(stage.texts(), ["data", "two"]);
    assert_eq!((stage.state("db"), stage.state("web")), ("in-force", "older"));
    // Wiped, and made anew.
    stage.store.clear();
    stage.node.replaced();
    stage.relist();
    stage.pass(1_000_000);
    assert_eq!(stage.texts(), ["data", "two"]);
    assert_eq!((stage.state("db"), stage.state("web")), ("withheld", "withheld"));
    stage.restart(|_| true);
    stage.relist();
    assert_eq!(stage.texts(), ["data", "two"]);
    // It cannot be deleted by who did not sign that.
    stage.put("web", "|delete|web|3|*|90000000||");
    assert_eq!(stage.texts(), ["data", "two"]);
    // The operator's word ends it.
    stage.put("web", "alice|delete|web|3|*|90000000||");
    assert_eq!(stage.texts(), ["data"]);
}

#[test]
fn a_document_in_force_outlives_its_time_and_is_not_accepted_again() {
    let mut stage = Stage::new();
    stage.put("web", "alice|policy|web|1|*|2000||one");
    stage.pass(5000);
    assert_eq!((stage.texts(), stage.state("web")), (vec!["one"], "in-force"));
    stage.restart(|_| true);
    stage.relist();
    assert_eq!((stage.texts(), stage.state("web")), (vec!["one"], "in-force"));
    stage.put("db", "alice|policy|db|1|*|2000||late");
    assert_eq!((stage.texts(), stage.state("db")), (vec!["one"], "expired"));
}

#[test]
fn a_clock_that_is_put_right_is_all_that_a_refused_document_needs() {
    let mut stage = Stage::new();
    stage.now.wall = 1_000_000;
    stage.put("web", &Stage::policy("web", 1, "one"));
    assert_eq!((stage.texts(), stage.state("web")), (vec![], "expired"));
    stage.now.wall = 1000;
    stage.settle();
    assert_eq!((stage.texts(), stage.state("web")), (vec!["one"], "in-force"));
    for wall in [0, u64::MAX] {
        stage.now.wall = wall;
        stage.relist();
        assert_eq!(
            (stage.texts(), stage.state("web")),
            (vec!["one"], "in-force"),
            "at {wall}"
        );
    }
}

#[test]
fn of_two_that_clash_what_is_in_force_stays_and_the_lower_name_comes_first() {
    let mut stage = Stage::new();
    stage.clashes = vec![("one", "data"), ("left", "right")];
    stage.put("web", &Stage::policy("web", 1, "one"));
    stage.put("db", &Stage::policy("db", 1, "data"));
    assert_eq!((stage.texts(), stage.state("db")), (vec!["one"], "conflict"));
    // Newcomers at once, beside one that is fine.
    for (name, text) in [("b", "right"), ("a", "left"), ("c", "fine")] {
        let value = Bytes::from(Stage::policy(name, 1, text));
        stage.store.insert(format!("policies/{name}"), value);
    }
    stage.relist();
    assert_eq!(stage.texts(), ["left", "fine", "one"]);
    assert_eq!((stage.state("b"), stage.state("db")), ("conflict", "conflict"));
    assert_eq!(stage.told().len(), 2);
    // The other one gives way.
    stage.put("web", &Stage::policy("web", 2, "two"));
    assert_eq!(
        (stage.texts(), stage.state("db")),
        (vec!["left", "fine", "data", "two"], "in-force")
    );
    assert_eq!(stage.told(), []);
}

#[test]
fn a_service_that_moves_from_one_document_to_another_arrives() {
    let mut stage = Stage::new();
    stage.clashes = vec![("has it", "takes it")];
    stage.put("b", &Stage::policy("b", 1, "has it"));
    for (name, version, text) in [("a", 1, "takes it"), ("b", 2, "without")] {
        let value = Bytes::from(Stage::policy(name, version, text));
        stage.store.insert(format!("policies/{name}"), value);
    }
    stage.relist();
    assert_eq!(stage.texts(), ["takes it", "without"]);
}

#[test]
fn a_newer_version_that_clashes_leaves_the_one_before() {
    let mut stage = Stage::new();
    stage.clashes = vec![("grabs", "one")];
    stage.put("web", &Stage::policy("web", 1, "one"));
    stage.put("db", &Stage::policy("db", 1, "data"));
    stage.put("db", &Stage::policy("db", 2, "grabs"));
    assert_eq!(
        (stage.texts(), stage.state("db")),
        (vec!["data", "one"], "conflict")
    );
    // Over a restart, too: it was not in force.
    stage.restart(|set| {
        set.part("db")
            .is_none_or(|part| part.verified.statement.text != "grabs")
    });
    stage.relist();
    assert_eq!(
        (stage.texts(), stage.state("db")),
        (vec!["data", "one"], "conflict")
    );
    // What the owner merges besides has changed: it is asked again.
    stage.clashes.clear();
    stage.settle();
    assert_eq!(stage.texts(), ["data", "one"]);
    stage.node.others_changed();
    stage.settle();
    assert_eq!(
        (stage.texts(), stage.state("db")),
        (vec!["grabs", "one"], "in-force")
    );
}

#[test]
fn what_the_machine_cannot_do_is_tried_again_and_nobodys_fault() {
    let mut stage = Stage::new();
    stage.broken = true;
    stage.put("web", &Stage::policy("web", 1, "one"));
    assert_eq!((stage.texts(), stage.state("web")), (vec![], "coming"));
    stage.broken = false;
    stage.settle();
    assert!(stage.texts().is_empty(), "not at once");
    let due = stage.node.due().expect("a time");
    assert!(due > stage.now.boot);
    stage.pass(1);
    assert_eq!(stage.texts(), ["one"]);
    assert_eq!(stage.told(), []);
}

#[test]
fn a_document_waits_for_its_lists_and_only_for_them() {
    let mut stage = Stage::new();
    stage.put("web", "alice|policy|web|1|*|9000|192.0.2.1|one");
    assert_eq!((stage.texts(), stage.state("web")), (vec![], "incomplete"));
    stage.put("db", &Stage::policy("db", 1, "data"));
    let objects = list("192.0.2.1").objects;
    let mut fetched = 0;
    while let [name] = stage.node.wanted()[..] {
        stage.node.object(name, &Bytes::from_static(b"a forged list"));
        stage.settle();
        assert_eq!((stage.texts(), stage.node.wanted()), (vec!["data"], vec![name]));
        stage.node.object(name, &Bytes::from(objects[&name].clone()));
        stage.settle();
        fetched += 1;
    }
    assert_eq!(
        (fetched, stage.texts(), stage.state("web")),
        (objects.len(), vec!["data", "one"], "in-force")
    );
    // The next version has the same list: nothing is fetched.
    stage.put("web", "alice|policy|web|2|*|9000|192.0.2.1|two");
    assert_eq!(
        (stage.texts(), stage.node.wanted()),
        (vec!["data", "two"], vec![])
    );
    // While another list is on its way the one in force stays.
    stage.put("web", "alice|policy|web|3|*|9000|192.0.2.3|three");
    assert_eq!(
        (stage.texts(), stage.state("web")),
        (vec!["data", "two"], "incomplete")
    );
    let objects = list("192.0.2.3").objects;
    while let [name] = stage.node.wanted()[..] {
        stage.node.object(name, &Bytes::from(objects[&name].clone()));
        stage.settle();
    }
    assert_eq!(stage.texts(), ["data", "three"]);
    let kept = &stage.node.applied().part("web").expect("there").objects;
    assert_eq!(kept.len(), objects.len(), "what no list is made of is let go");
}

#[test]
fn killed_at_any_moment_of_a_change_it_goes_on_with_one_of_the_two() {
    let mut stage = Stage::new();
    stage.put("web", &Stage::policy("web", 1, "one"));
    // Planned and kept, then killed before or after the kernel had it.
    let value = Bytes::from(Stage::policy("web", 2, "two"));
    stage
        .node
        .change("policies/web", Some(value), &stage.judge, stage.now);
    stage.node.look(&mut stage.judge, stage.now);
    assert!(stage.node.plan(stage.now).is_some());
    stage.restart(|_| true);
    assert_eq!(stage.texts(), ["two"]);
    // Killed, and the kernel takes only what it had.
    let value = Bytes::from(Stage::policy("web", 3, "three"));
    stage
        .node
        .change("policies/web", Some(value), &stage.judge, stage.now);
    stage.node.look(&mut stage.judge, stage.now);
    assert!(stage.node.plan(stage.now).is_some());
    stage.broken = true;
    stage.restart(|set| {
        set.parts
            .iter()
            .all(|part| part.verified.statement.text != "three")
    });
    assert_eq!(stage.texts(), ["two"]);
    // None of both could be put in force: they are offered again.
    stage.restart(|_| false);
    assert!(stage.texts().is_empty());
    stage.broken = false;
    stage.pass(60);
    assert_eq!(stage.texts(), ["three"]);
}

#[test]
fn who_is_not_trusted_any_more_has_no_document_in_force() {
    let mut stage = Stage::new();
    stage.put("web", &Stage::policy("web", 1, "one"));
    stage.put("db", "bob|policy|db|1|*|9000||data");
    stage.judge.untrusted = vec!["bob"];
    let kept = read_back(stage.node.keep());
    stage.node.trust_changed(&stage.judge);
    stage.relist();
    assert_eq!(
        (stage.texts(), stage.state("db")),
        (vec!["one"], "unknown-signer")
    );
    // The same after a restart.
    let mut node = Node::new(Duration::ZERO);
    node.restore(kept, &stage.judge);
    assert_eq!(node.kept()[0].parts.len(), 1);
    assert_eq!(node.refusals()[0].rejection.word, "unknown-signer");
}

#[test]
fn nodes_count_where_a_group_asks_for_them() {
    let mut stage = Stage::new();
    stage.put("web", &Stage::policy("web", 1, "one"));
    let sets = stage.node.taken;
    stage
        .store
        .insert("nodes/n1".into(), Bytes::from_static(b"192.0.2.1"));
    stage
        .store
        .insert("nodes/n2".into(), Bytes::from_static(b"forged"));
    stage.relist();
    assert!(!stage.node.asks_for_nodes());
    assert_eq!(stage.node.taken, sets, "nobody asks: the policy is the same");
    assert_eq!(stage.told(), [("nodes/n2".to_owned(), "malformed")]);
    stage.put("web", &Stage::policy("web", 2, "asks"));
    assert!(stage.node.asks_for_nodes());
    assert_eq!(stage.node.applied().nodes.0.len(), 1);
    // One comes, and is there.
    stage
        .store
        .insert("nodes/n3".into(), Bytes::from_static(b"192.0.2.3"));
    stage.relist();
    assert_eq!(stage.node.applied().nodes.0.len(), 2);
    // One goes, and stays for the grace time; not while the store is out of reach.
    stage.vanish("nodes/n1");
    stage.pass(GRACE - 1);
    assert_eq!(stage.node.applied().nodes.0.len(), 2);
    stage.node.lost();
    stage.pass(10 * GRACE);
    assert_eq!(stage.node.applied().nodes.0.len(), 2);
    stage.relist();
    stage.pass(GRACE);
    assert_eq!(stage.node.applied().nodes.0.len(), 1);
    // Wiped: those who are there stay.
    stage.store.clear();
    stage.node.replaced();
    stage.relist();
    stage.pass(10 * GRACE);
    assert_eq!(stage.node.applied().nodes.0.len(), 1);
    stage.restart(|_| true);
    stage.pass(10 * GRACE);
    assert_eq!(stage.node.applied().nodes.0.len(), 1);
}

#[test]
fn names_that_no_document_has_are_not_looked_at() {
    let mut stage = Stage::new();
    for name in ["../x", "", ".hidden", "a/b", "a b", "\u{1b}[2J"] {
        stage.put(name, &Stage::policy(name, 1, "one"));
    }
    for number in 0..2 * MOST_NAMES {
        stage
            .store
            .insert(format!("policies/z{number}"), Bytes::from_static(b"garbage"));
    }
    stage.relist();
    assert!(stage.texts().is_empty());
    assert_eq!(stage.node.slots.len(), MOST_NAMES);
}

#[test]
fn a_ban_is_carried_out_once_and_outlives_its_key() {
    let mut stage = Stage::new();
    let put = |stage: &mut Stage, value: &str| {
        let value = Bytes::from(value.to_owned());
        stage.store.insert("bans/203.0.113.0_24".into(), value);
        stage.relist();
        let orders = stage.node.orders().into_iter();
        let orders = orders.map(|order| (order.prefix, order.terms.map(|terms| terms.until), order.again));
        orders.collect::<Vec<_>>()
    };
    let ban = "alice|ban|203.0.113.0/24|1|*|9000||until: 1970-01-01T01:00:00Z\nwhy: scans\n";
    let prefix = || "203.0.113.0/24".to_owned();
    assert_eq!(put(&mut stage, ban), [(prefix(), Some(Some(3600)), false)]);
    assert_eq!(put(&mut stage, ban), []);
    for (word, refused) in [
        ("unsigned", "|unban|203.0.113.0/24|2|*|9000||"),
        ("malformed", "alice|unban|203.0.113.0/25|2|*|9000||"),
        ("malformed", "garbage"),
    ] {
        assert_eq!(put(&mut stage, refused), []);
        assert_eq!(stage.told(), [("bans/203.0.113.0_24".to_owned(), word)]);
    }
    stage.store.clear();
    stage.relist();
    assert_eq!(stage.node.orders(), []);
    // Another run of the agent, whose owner may have lost it.
    stage.restart(|_| true);
    assert_eq!(put(&mut stage, ban), [(prefix(), Some(Some(3600)), true)]);
    assert_eq!(
        put(&mut stage, "alice|unban|203.0.113.0/24|2|*|9000||"),
        [(prefix(), None, false)]
    );
    assert_eq!(put(&mut stage, ban), [], "an older word");
    assert_eq!(stage.told(), [("bans/203.0.113.0_24".to_owned(), "older")]);
    // For others, and over.
    assert_eq!(
        put(
            &mut stage,
            "alice|ban|203.0.113.0/24|3|elsewhere|9000||until: never\n"
        ),
        []
    );
    stage.now.wall = 5000;
    assert_eq!(
        put(
            &mut stage,
            "alice|ban|203.0.113.0/24|4|*|9000||until: 1970-01-01T01:00:00Z\n"
        ),
        []
    );
}
