"""Small, realistic programs with a numerical fault, to try `robustad audit` on."""
