from pokevla_jax.data import hashing


def test_a_name_s_number_is_the_head_of_its_sha256():
    """FIPS 180-2, appendix B.1: the digest of "abc" begins with ba7816bf 8f01cfea. Splits on disk depend on it."""
    assert hashing.uniform("abc") == 0xBA7816BF8F01CFEA / 2**64
