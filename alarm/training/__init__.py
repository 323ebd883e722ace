"""PPO training, --test and calibration."""
