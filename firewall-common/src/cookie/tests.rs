use super::*;
use crate::packet::{SliceFrame, parse};
use proptest::prelude::*;

/// Ethernet with `tags`, IPv4 or IPv6, and a SYN with these options, padded with [`option::END`].
fn syn(version: u8, tags: usize, options: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for _ in 0..tags {
        frame.extend([0x81, 0, 0, 9]);
    }
    let mut tcp = vec![
        0xc3, 0x50, 0x1f, 0x90, 0, 0, 0, 7, 0, 0, 0, 0, 0, 2, 0xfa, 0xf0, 0, 0, 0, 0,
    ];
    tcp.extend(options);
    tcp.resize(tcp.len().next_multiple_of(4), 0);
    tcp[12] = ((tcp.len() / 4) << 4) as u8;
    if version == 4 {
        frame.extend([8, 0, 0x45, 0, 0, 20 + tcp.len() as u8, 0, 1, 0x40, 0, 63, 6, 0, 0]);
        frame.extend([198, 51, 100, 7, 192, 0, 2, 1]);
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, tcp.len() as u8, 6, 63]);
        for last in [7, 1] {
            frame.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
    }
    frame.extend(tcp);
    frame
}

fn read(frame: &[u8]) -> (Packet, Segment, Offer) {
    let mut packet = Packet::EMPTY;
    parse(&SliceFrame(frame), &mut packet).unwrap();
    let segment = segment(&SliceFrame(frame), &packet).unwrap();
    let offer = Options::default().read(&SliceFrame(frame), &packet, segment);
    (packet, segment, offer)
}

fn offered(options: &[u8]) -> Offer {
    read(&syn(4, 0, options)).2
}

/// What Linux sends.
const LINUX: &[u8] = &[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 1, 2, 3, 0, 0, 0, 0, 1, 3, 3, 10];

#[test]
fn reads_what_a_syn_offers() {
    let all = Offer {
        tsval: 0x0001_0203,
        mss: 1460,
        scale: HAS_SCALE | 10,
        has: HAS_SACK | HAS_TIMESTAMPS,
    };
    assert_eq!(offered(LINUX), all);
    let mss = Offer {
        mss: 1460,
        ..Offer::default()
    };
    assert_eq!(offered(&[2, 4, 5, 0xb4]), mss);
    assert_eq!(offered(&[1, 1, 1, 1, 2, 4, 5, 0xb4]), mss);
    assert_eq!(offered(&[30, 2, 2, 4, 5, 0xb4]), mss);
    assert_eq!(offered(&[]), Offer::default());
    // The shift of RFC 7323 is 14 at the most.
    assert_eq!(offered(&[3, 3, 200]).scale, HAS_SCALE | 14);
    assert_eq!(offered(&[3, 3, 0]).scale, HAS_SCALE);
    // What stands behind the end does not count.
    assert_eq!(offered(&[2, 4, 5, 0xb4, 0, 4, 2, 3, 3, 7]), mss);
    // Forty bytes of one-byte options, and the last one just fits.
    let mut long = vec![1; 36];
    long.extend([2, 4, 5, 0xb4]);
    assert_eq!(offered(&long), mss);
}

#[test]
fn malformed_options_offer_nothing() {
    for bad in [
        &[2, 4, 5, 0xb4, 4, 0][..],
        &[2, 4, 5, 0xb4, 4, 1],
        &[2, 4, 5, 0xb4, 8, 10, 0, 0],
        &[2, 4, 5, 0xb4, 1, 1, 1, 8],
        &[4, 2, 2, 200],
    ] {
        assert_eq!(offered(bad), Offer::default(), "{bad:?}");
    }
    // A known option of another length is one that nobody knows.
    assert_eq!(
        offered(&[2, 3, 5, 4, 2]),
        Offer {
            has: HAS_SACK,
            ..Offer::default()
        }
    );
}

/// As Linux reads them (`tcp_parse_options`), but nothing where it would stop in the middle.
fn reference(mut rest: &[u8]) -> Offer {
    let mut offer = Offer::default();
    while let [kind, tail @ ..] = rest {
        match (kind, tail) {
            (0, _) => break,
            (1, _) => rest = tail,
            (_, [len, ..]) if *len >= 2 && *len as usize <= rest.len() => {
                let (this, next) = rest.split_at(*len as usize);
                match this {
                    [2, 4, a, b] => offer.mss = u16::from_be_bytes([*a, *b]),
                    [3, 3, shift] => offer.scale = HAS_SCALE | (*shift).min(14),
                    [4, 2] => offer.has |= HAS_SACK,
                    [8, 10, a, b, c, d, ..] => {
                        offer.has |= HAS_TIMESTAMPS;
                        offer.tsval = u32::from_be_bytes([*a, *b, *c, *d]);
                    }
                    _ => {}
                }
                rest = next;
            }
            _ => return Offer::default(),
        }
    }
    offer
}

/// The sum over bytes as they are, which is zero where a checksum is right (RFC 1071).
fn checked(bytes: &[u8]) -> u16 {
    let sum = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(*high) << 8 | u32::from(*low),
        odd => u32::from(odd[0]) << 8,
    });
    let mut sum: u32 = sum.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn answered(packet: &Packet, answer: &Answer) -> Vec<u8> {
    let mut words = [0xdead_beef; 32];
    let len = write(packet, answer, &mut words) as usize;
    words
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .take(len)
        .collect()
}

/// Splits an answer into source, destination and segment, after its headers were checked.
fn taken_apart(bytes: &[u8]) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let (src, dst, segment) = match bytes[0] >> 4 {
        4 => {
            assert_eq!(bytes[0], 0x45);
            assert_eq!(u16::from_be_bytes([bytes[2], bytes[3]]) as usize, bytes.len());
            assert_eq!((bytes[6], bytes[7], bytes[8], bytes[9]), (0x40, 0, 64, 6));
            assert_eq!(checked(&bytes[..20]), 0, "the checksum of the header");
            (&bytes[12..16], &bytes[16..20], &bytes[20..])
        }
        _ => {
            assert_eq!(bytes[..4], [0x60, 0, 0, 0]);
            assert_eq!(
                u16::from_be_bytes([bytes[4], bytes[5]]) as usize,
                bytes.len() - 40
            );
            assert_eq!((bytes[6], bytes[7]), (6, 64));
            (&bytes[8..24], &bytes[24..40], &bytes[40..])
        }
    };
    let len = segment.len() as u32;
    let pseudo = [src, dst, &len.to_be_bytes(), &6u32.to_be_bytes(), segment].concat();
    assert_eq!(checked(&pseudo), 0, "the checksum of the segment");
    assert_eq!((segment[12] >> 4) as usize * 4, segment.len());
    assert_eq!(segment[13], tcp::SYN | tcp::ACK);
    (src.to_vec(), dst.to_vec(), segment.to_vec())
}

const BASE: Answer = Answer {
    offer: Offer {
        tsval: 0,
        mss: 0,
        scale: 0,
        has: 0,
    },
    seq: 7,
    cookie: 0x1234_5678,
    mtu: 1500,
    now_ms: 0x1_0000_0123,
    carries: true,
    scale: 9,
};

#[test]
fn answers_with_all_options_where_timestamps_carry_them() {
    let frame = syn(4, 0, LINUX);
    let (packet, segment, offer) = read(&frame);
    let bytes = answered(
        &packet,
        &Answer {
            offer,
            seq: segment.seq,
            ..BASE
        },
    );
    let (src, dst, answer) = taken_apart(&bytes);
    assert_eq!((src, dst), (vec![192, 0, 2, 1], vec![198, 51, 100, 7]));
    assert_eq!(
        answer[..12],
        [0x1f, 0x90, 0xc3, 0x50, 0x12, 0x34, 0x56, 0x78, 0, 0, 0, 8]
    );
    // The clock in steps of 64, with the scale of the other side and SACK in the low bits.
    assert_eq!(
        answer[20..],
        [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 1, 0x1a, 0, 1, 2, 3, 1, 3, 3, 9]
    );
}

#[test]
fn answers_with_the_mss_only_where_they_do_not() {
    let (packet, _, offer) = read(&syn(6, 2, LINUX));
    let bytes = answered(
        &packet,
        &Answer {
            offer,
            carries: false,
            ..BASE
        },
    );
    // The device bears 1,440 in IPv6, the other side named 1,460.
    assert_eq!(taken_apart(&bytes).2[20..], [2, 4, 5, 0xa0]);
    // Without timestamps in the SYN there is nothing to carry the others.
    let (packet, _, offer) = read(&syn(4, 0, &[2, 4, 5, 0x78, 4, 2, 3, 3, 7]));
    let bytes = answered(&packet, &Answer { offer, ..BASE });
    assert_eq!(taken_apart(&bytes).2[20..], [2, 4, 5, 0x78]);
    let (packet, _, offer) = read(&syn(4, 0, &[]));
    assert_eq!(answered(&packet, &Answer { offer, ..BASE }).len(), 40);
}

#[test]
fn names_no_mss_below_what_everybody_bears() {
    for (version, mtu, offered, expected) in [
        (4, 1500, 1460, 1460),
        (4, 9000, 1460, 1460),
        (4, 1500, 8960, 1460),
        (4, 1500, 1, 536),
        (4, 68, 1460, 536),
        (6, 1500, 1440, 1440),
        (6, 1280, 1440, 1220),
        (6, 0, 1440, 1220),
    ] {
        assert_eq!(mss(version, offered, mtu), expected, "{version} {mtu} {offered}");
    }
}

#[test]
fn the_headers_of_a_cookie_have_what_the_kernel_reads() {
    let (packet, segment, offer) = read(&syn(4, 1, LINUX));
    let (mut ip, mut header) = ([0; 10], [0; 6]);
    assert_eq!(ip_header(&packet, &mut ip), 20);
    tcp_header(&packet, segment, offer.mss, &mut header);
    let ip: Vec<u8> = ip.iter().flat_map(|word| word.to_ne_bytes()).take(20).collect();
    let header: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
    assert_eq!((ip[0], &ip[12..]), (0x45, &[198, 51, 100, 7, 192, 0, 2, 1][..]));
    assert_eq!(
        header[..14],
        [0xc3, 0x50, 0x1f, 0x90, 0, 0, 0, 7, 0, 0, 0, 0, 0x60, 2]
    );
    assert_eq!(header[20..], [2, 4, 5, 0xb4]);

    let (packet, segment, _) = read(&syn(6, 0, &[]));
    let (mut ip, mut header) = ([0; 10], [0; 6]);
    assert_eq!(ip_header(&packet, &mut ip), 40);
    tcp_header(&packet, segment, 0, &mut header);
    let ip: Vec<u8> = ip.iter().flat_map(|word| word.to_ne_bytes()).collect();
    assert_eq!((ip[0], ip[23], ip[39]), (0x60, 7, 1));
    assert_eq!(header[5].to_ne_bytes(), [1; 4]);
}

#[test]
fn each_port_has_its_bit() {
    let mut words = vec![0u64; PUBLISHED_WORDS as usize];
    for port in 0..=u16::MAX {
        let (word, bit) = published_bit(port);
        assert_eq!(words[word as usize] & bit, 0, "{port}");
        words[word as usize] |= bit;
    }
    assert!(words.iter().all(|word| *word == u64::MAX));
}

/// `cookie_timestamp_decode`: window scale and SACK.
fn decoded(stamp: u32) -> (Option<u8>, bool) {
    let scale = (stamp & 0xf) as u8;
    ((scale != 0xf).then_some(scale), stamp & 0x10 != 0)
}

fn option_bytes() -> impl Strategy<Value = Vec<u8>> {
    let any_option = prop_oneof![
        Just(LINUX.to_vec()),
        Just(vec![1]),
        Just(vec![0]),
        any::<[u8; 2]>().prop_map(|[a, b]| vec![2, 4, a, b]),
        any::<u8>().prop_map(|shift| vec![3, 3, shift]),
        Just(vec![4, 2]),
        any::<[u8; 8]>().prop_map(|stamps| [&[8, 10][..], &stamps].concat()),
        prop::collection::vec(any::<u8>(), 0..12),
    ];
    let many = prop::collection::vec(any_option, 0..12);
    many.prop_map(|many| many.concat().into_iter().take(40).collect())
}

proptest! {
    #[test]
    fn any_bytes_are_read_as_the_reference_does(bytes in option_bytes(), version in prop_oneof![Just(4u8), Just(6)], tags in 0usize..3) {
        let mut padded = bytes.clone();
        padded.resize(bytes.len().next_multiple_of(4), 0);
        prop_assert_eq!(read(&syn(version, tags, &bytes)).2, reference(&padded));
    }

    #[test]
    fn any_answer_is_a_packet_no_longer_than_the_question(
        bytes in option_bytes(), version in prop_oneof![Just(4u8), Just(6)],
        cookie: u32, seq: u32, now_ms in 0u64..1 << 40, mtu in 0u32..70_000, carries: bool, scale in 0u8..15,
    ) {
        let frame = syn(version, 0, &bytes);
        let (packet, _, offer) = read(&frame);
        let answer = Answer { offer, seq, cookie, mtu, now_ms, carries, scale };
        let out = answered(&packet, &answer);
        prop_assert!(14 + out.len() <= frame.len());
        let (_, _, segment) = taken_apart(&out);
        prop_assert_eq!(&segment[4..8], &cookie.to_be_bytes());
        prop_assert_eq!(&segment[8..12], &seq.wrapping_add(1).to_be_bytes());
        let told = reference(&segment[20..]);
        prop_assert_eq!(told.mss != 0, offer.mss != 0);
        let stamped = carries && offer.has & HAS_TIMESTAMPS != 0;
        prop_assert_eq!(told.has & HAS_TIMESTAMPS != 0, stamped);
        prop_assert_eq!(told.has & HAS_SACK != 0, stamped && offer.has & HAS_SACK != 0);
        prop_assert_eq!(told.scale, if stamped && offer.scale != 0 { HAS_SCALE | scale } else { 0 });
        if stamped {
            let theirs = (offer.scale != 0).then_some(offer.scale & 0xf);
            prop_assert_eq!(decoded(told.tsval), (theirs, offer.has & HAS_SACK != 0));
            // Not ahead of the clock, or the first segment of the connection would come from the past.
            let behind = (now_ms as u32).wrapping_sub(told.tsval);
            prop_assert!(behind < 64, "{} ms behind", behind);
        }
    }
}
