//! Which partition a record's events lie in. Chosen by the gateway from the key and the number of partitions that the topic was
//! made with, and not by how many it has now: a partition added later would part a record from its history.

/// The partition that a Java producer chooses for a key, among so many: `toPositive(murmur2(key)) % partitions`
/// (`org.apache.kafka.common.utils.Utils`, librdkafka's `murmur2_random`).
pub fn partition_of(key: &[u8], partitions: i32) -> i32 {
    let positive = murmur2(key) & 0x7fff_ffff;
    // Below `partitions`, so it fits.
    (positive % partitions.max(1).unsigned_abs()) as i32
}

/// MurmurHash2 with Kafka's seed (Austin Appleby, public domain).
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c_u32 ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (at, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * at);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur2_is_kafkas() {
        // From the tests of Kafka's own clients (UtilsTest).
        for (text, hash) in [
            ("21", -973_932_308_i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(text.as_bytes()) as i32, hash, "{text}");
        }
        assert_eq!(partition_of(b"abc", 6), 479_470_107 % 6);
        assert_eq!(partition_of(b"abc", 0), 0);
    }
}
