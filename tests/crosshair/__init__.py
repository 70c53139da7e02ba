"""Pure functions of the contract, for all values: ordinary property tests, and for CrossHair to solve."""
