"""Files of the Moshi family: Kyutai's and NVIDIA's weights, configs, adapters and voices."""
