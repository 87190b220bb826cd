"""For those who want proof: kits that put what is promised to the test."""
