use aya::{EbpfLoader, programs::Xdp};
use ravelin_tests::{rotate::*, kernel::test_run};
use std::os::fd::AsFd;
fn main() {
    let mut objs = vec![];
    for path in std::env::args().skip(1).filter(|a| !a.starts_with("--")) {
        let bytes = std::fs::read(&path).unwrap();
        let mut bpf = EbpfLoader::new().load(&bytes).unwrap();
        let p: &mut Xdp = bpf.program_mut("ingress").unwrap().try_into().unwrap();
        p.load().unwrap();
        objs.push((path, bpf));
    }
    let empty = empty_drop().unwrap();
    let rot = Rotation::new(false, &End::Program(empty.as_fd())).unwrap();
    rot.fill(&(0..65536u32).map(|i| std::net::IpAddr::V4((0x1000_0000 + i * 257).into())).collect::<Vec<_>>()).unwrap();
    let frame = ravelin::simulate::FrameBuilder::tcp_syn("192.0.2.2".parse().unwrap(), 1, "192.0.2.1".parse().unwrap(), 9).build();
    let mut base = u32::MAX; let mut best = vec![u32::MAX; objs.len()];
    for _ in 0..200 {
        rot.aim(empty.as_fd()).unwrap();
        base = base.min(test_run(rot.program(), &frame, 65536).unwrap().1);
        for (i, (_, bpf)) in objs.iter().enumerate() {
            let p: &Xdp = bpf.program("ingress").unwrap().try_into().unwrap();
            rot.aim(p.fd().unwrap().as_fd()).unwrap();
            best[i] = best[i].min(test_run(rot.program(), &frame, 65536).unwrap().1);
        }
    }
    println!("base {base}");
    for (i, (path, _)) in objs.iter().enumerate() { println!("{path}: +{}", best[i] - base); }
}
