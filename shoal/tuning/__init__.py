"""Settings found within a budget, or the word that the defaults stay."""
