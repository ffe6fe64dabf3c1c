"""Stage index: vectors become index parts that share one codebook."""
