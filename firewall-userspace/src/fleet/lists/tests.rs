use super::*;
use crate::policy::model::PrefixList;
use proptest::prelude::*;
use std::collections::BTreeSet;

const PATH: &str = "lists/blocked.txt";

fn encoded(text: &str) -> Encoded {
    encode(text.as_bytes(), Path::new(PATH)).expect("a list")
}

fn decoded(encoded: &Encoded) -> Result<Vec<u8>, ListError> {
    decode(&encoded.root, |digest| encoded.objects.get(digest))
}

fn read(bytes: &[u8]) -> PrefixList {
    lists::parse(bytes, Path::new(PATH)).expect("a list").prefixes
}

/// Numbers that are the same each time.
fn numbers(seed: u64) -> impl Iterator<Item = u64> {
    (seed..).map(|number| mixed((u128::from(number), 0)))
}

fn v4(count: usize) -> Vec<String> {
    let all: BTreeSet<u32> = numbers(1).take(count).map(|number| number as u32).collect();
    all.into_iter()
        .map(|number| Ipv4Addr::from(number).to_string())
        .collect()
}

fn v6(count: usize) -> Vec<String> {
    let halves = numbers(1).zip(numbers(1 << 40)).take(count);
    halves
        .map(|(high, low)| Ipv6Addr::from(u128::from(high) << 64 | u128::from(low)).to_string())
        .collect()
}

/// Bytes of the objects that the first has not.
fn moved(before: &Encoded, after: &Encoded) -> usize {
    let new = after
        .objects
        .iter()
        .filter(|(digest, _)| !before.objects.contains_key(digest));
    new.map(|(_, object)| object.len()).sum()
}

#[test]
fn order_comments_and_doubles_make_no_difference() {
    let one = encoded("192.0.2.0/24\n2001:db8::/32\n198.51.100.7\n");
    let other = encoded("# x\r\n198.51.100.7/32 # y\n\n2001:db8::/32\n192.0.2.9/24\n192.0.2.0/24");
    assert_eq!(one, other);
    assert_eq!(one.prefixes, 3);
    assert_eq!(
        decoded(&one).expect("whole"),
        b"192.0.2.0/24\n198.51.100.7\n2001:db8::/32\n"
    );
    let empty = encoded("# nothing\n");
    assert_eq!(decoded(&empty).expect("whole"), b"");
    assert_eq!(empty.objects.len(), 1);
    assert_ne!(empty.root, one.root);
    let errors = encode(b"192.0.2.1\nnonsense\n", Path::new(PATH)).expect_err("refused");
    assert!(
        errors[0].to_string().starts_with("lists/blocked.txt:2:1: "),
        "{}",
        errors[0]
    );
}

#[test]
fn one_prefix_of_very_many_moves_little() {
    // The widest hosts of both families; what is more regular takes less.
    for (family, all) in [("v4", v4(100_000)), ("v6", v6(30_000))] {
        let before = encoded(&all.join("\n"));
        assert!(
            before.objects.values().all(|object| object.len() < 64 << 10),
            "{family}: small objects"
        );
        for at in [0, all.len() / 3, all.len() - 1] {
            let mut fewer = all.clone();
            fewer.swap_remove(at);
            let mut other = fewer.clone();
            other.push(if family == "v4" {
                "192.0.2.77".into()
            } else {
                "2001:db8::77".into()
            });
            for (what, changed) in [("removed", fewer), ("replaced", other)] {
                let after = encoded(&changed.join("\n"));
                let bytes = moved(&before, &after);
                // Two places at the most, each a chunk, a page and the root.
                assert!(bytes < 64 << 10, "{family} {what}: {bytes}");
                assert!(
                    after.objects.len()
                        - after
                            .objects
                            .keys()
                            .filter(|digest| before.objects.contains_key(*digest))
                            .count()
                        <= 7
                );
                assert_eq!(read(&decoded(&after).expect("whole")).len(), changed.len());
            }
        }
    }
}

#[test]
fn what_is_missing_is_asked_for_level_by_level() {
    let list = encoded(&v4(20_000).join("\n"));
    let mut have: BTreeMap<Digest, Vec<u8>> = BTreeMap::new();
    let mut rounds = Vec::new();
    loop {
        let missing = missing(&list.root, |digest| have.get(digest)).expect("sound");
        if missing.is_empty() {
            break;
        }
        rounds.push(missing.len());
        have.extend(
            missing
                .iter()
                .map(|digest| (*digest, list.objects[digest].clone())),
        );
    }
    assert_eq!(rounds.len(), 3, "{rounds:?}");
    assert_eq!(have, list.objects);
    let all = objects(&list.root, |digest| have.get(digest)).expect("whole");
    assert_eq!(
        all.into_iter().collect::<HashSet<_>>(),
        have.keys().copied().collect()
    );
    assert_eq!(prefixes(&list.root, &have[&list.root]), Ok(list.prefixes));
    for digest in list.objects.keys() {
        have.remove(digest);
        assert_eq!(
            decode(&list.root, |digest| have.get(digest)),
            Err(ListError::Missing(*digest))
        );
        have.insert(*digest, list.objects[digest].clone());
    }
}

/// An object under its digest, whatever it holds.
fn add(objects: &mut BTreeMap<Digest, Vec<u8>>, object: Vec<u8>) -> Digest {
    let digest = Digest::of(&object);
    objects.insert(digest, object);
    digest
}

/// A list of these chunks that says it has `count` prefixes.
fn list_of(chunks: Vec<Vec<u8>>, count: u64) -> Result<Vec<u8>, ListError> {
    let mut objects = BTreeMap::new();
    let chunks: Vec<Digest> = chunks.into_iter().map(|chunk| add(&mut objects, chunk)).collect();
    let page = add(&mut objects, write_digests(PAGE_MAGIC, &chunks));
    let head = [ROOT_MAGIC, &count.to_be_bytes()].concat();
    let root = add(&mut objects, write_digests(&head, &[page]));
    decode(&root, |digest| objects.get(digest))
}

fn chunk_of(raw: &[u8]) -> Vec<u8> {
    [CHUNK_MAGIC, &compress_to_vec(raw, LEVEL)].concat()
}

#[test]
fn hostile_objects_are_refused_and_bounded() {
    let good = |prefixes: &[Prefix]| write_chunk(Family::V4, prefixes);
    let (low, high) = ([(0x0a00_0000, 8)], [(0xc000_0200, 24)]);
    assert!(list_of(vec![good(&low), good(&high)], 2).is_ok());
    let six = write_chunk(Family::V6, &[(0x2001_0db8 << 96, 32)]);
    assert!(list_of(vec![good(&low), six.clone()], 2).is_ok());
    // A number that never ends; more bits than there are.
    let endless = [&[128u8, 1, 0, 128][..], &[0xff; 19]].concat();
    let wide = [&[128u8, 1, 0, 128][..], &[0xff; 18], &[0x7f]].concat();
    for (what, chunks, count) in [
        ("out of order", vec![good(&high), good(&low)], 2),
        ("twice", vec![good(&low), good(&low)], 2),
        ("families turned", vec![six.clone(), good(&low)], 2),
        ("more than promised", vec![good(&low), good(&high)], 1),
        ("fewer than promised", vec![good(&low)], 2),
        ("no chunk", Vec::new(), 0),
        ("not a chunk", vec![b"hello".to_vec()], 1),
        (
            "a page as a chunk",
            vec![write_digests(PAGE_MAGIC, &[Digest::of(b"")])],
            1,
        ),
        ("not deflated", vec![[CHUNK_MAGIC, b"\xff\xff\xff"].concat()], 1),
        ("empty", vec![chunk_of(b"")], 0),
        ("no prefixes", vec![chunk_of(&[32, 0, 0])], 0),
        ("unknown family", vec![chunk_of(&[64, 1, 0, 8, 10])], 1),
        ("length 0", vec![chunk_of(&[32, 1, 0, 0, 0])], 1),
        ("length 33", vec![chunk_of(&[32, 1, 0, 33, 0])], 1),
        ("host bits", vec![chunk_of(&[32, 1, 0, 8, 1])], 1),
        ("shift out of range", vec![chunk_of(&[32, 1, 32, 8, 0])], 1),
        ("shifted out", vec![chunk_of(&[32, 1, 31, 1, 2])], 1),
        (
            "beyond the family",
            vec![chunk_of(&[32, 1, 0, 32, 0x80, 0x80, 0x80, 0x80, 0x10])],
            1,
        ),
        ("endless number", vec![chunk_of(&endless)], 1),
        ("too many bits", vec![chunk_of(&wide)], 1),
        ("a tail", vec![chunk_of(&[32, 1, 24, 8, 10, 0])], 1),
        (
            "a count without content",
            vec![chunk_of(&[32, 0xff, 0x3f, 0])],
            8191,
        ),
        (
            "a huge count",
            vec![chunk_of(&[&[32u8][..], &[0xff; 18], &[3]].concat())],
            1,
        ),
        ("a bomb", vec![chunk_of(&vec![0; 50_000_000])], 1),
        ("large", vec![[CHUNK_MAGIC, &vec![7; MAX_OBJECT]].concat()], 1),
    ] {
        let error = list_of(chunks, count).expect_err(what);
        assert!(matches!(error, ListError::Damaged { .. }), "{what}: {error}");
    }
    assert_eq!(
        list_of(vec![good(&low)], u64::MAX),
        Err(ListError::TooMany(u64::MAX))
    );
    let mut objects = BTreeMap::new();
    let pages = vec![Digest::of(b""); 257];
    for (what, object) in [
        ("a root cut short", ROOT_MAGIC.to_vec()),
        ("half a digest", [ROOT_MAGIC, &[0; 24]].concat()),
        ("another kind", b"ravelin-list 2 root\n".to_vec()),
        ("a page of too many", write_digests(PAGE_MAGIC, &pages)),
    ] {
        let digest = add(&mut objects, object.clone());
        let error = match object.starts_with(PAGE_MAGIC) {
            true => read_page(&digest, &object).map(drop),
            false => read_root(&digest, &object).map(drop),
        };
        assert!(matches!(error, Err(ListError::Damaged { .. })), "{what}");
    }
    // Whoever owns the store puts other bytes under a name.
    let list = encoded("192.0.2.0/24\n198.51.100.0/24\n");
    for digest in list.objects.keys() {
        for other in [
            Vec::new(),
            b"x".to_vec(),
            list.objects.values().flatten().copied().collect(),
        ] {
            let lies = |asked: &Digest| match asked == digest {
                true => Some(other.clone()),
                false => list.objects.get(asked).cloned(),
            };
            let error = decode(&list.root, lies).expect_err("other bytes");
            assert!(
                error.to_string().contains("its bytes have another digest"),
                "{error}"
            );
        }
    }
}

proptest! {
    #[test]
    fn what_is_cut_is_put_together(
        four in proptest::collection::vec((any::<u32>(), 1u8..=32), 0..400),
        six in proptest::collection::vec((any::<u128>(), 1u8..=128), 0..400),
    ) {
        let four = four.iter().map(|(bits, length)| format!("{}/{length}\n", Ipv4Addr::from(*bits)));
        let six = six.iter().map(|(bits, length)| format!("{}/{length}\n", Ipv6Addr::from(*bits)));
        // Addresses that mean IPv4 are refused in a list.
        let six = six.filter(|line| !line.starts_with("::ffff:"));
        let text: String = four.chain(six).collect();
        let mut wanted = read(text.as_bytes());
        wanted.v4.sort_unstable();
        wanted.v4.dedup();
        wanted.v6.sort_unstable();
        wanted.v6.dedup();
        let list = encoded(&text);
        let back = read(&decoded(&list).expect("whole"));
        prop_assert_eq!((&back.v4, &back.v6), (&wanted.v4, &wanted.v6));
        prop_assert_eq!(list.prefixes as usize, back.v4.len() + back.v6.len());
    }

    #[test]
    fn no_objects_panic(raw: Vec<u8>, packed: Vec<u8>) {
        for object in [chunk_of(&raw), [CHUNK_MAGIC, &packed].concat(), [PAGE_MAGIC, &packed].concat(), [ROOT_MAGIC, &packed].concat()] {
            let digest = Digest::of(&object);
            let _ = read_chunk(&digest, &object);
            let _ = read_page(&digest, &object);
            let _ = missing(&digest, |_| Some(&object));
        }
        let _ = unpack(&raw);
    }
}
